import pytest
import torch

from immiscible_diffusion.data import ImageSet
from immiscible_diffusion.utils.random import keyed_generator


def numbered(count: int = 12, *, flip: bool = False, labels: bool = True) -> ImageSet:
    """Images ``[N, 3, 2, 4]`` of which no two, and no two mirrored, are equal."""
    images = torch.arange(count * 24).view(count, 3, 2, 4) % 251
    target = torch.arange(count) % 3 if labels else None
    return ImageSet(images.to(torch.uint8), "numbered", target, flip=flip)


@pytest.mark.parametrize("levels", [16, 255])
def test_levels_map_to_minus_one_and_one_and_come_back_exactly(levels):
    images = torch.arange(levels + 1, dtype=torch.uint8).view(-1, 1, 1, 1)
    data = ImageSet(images, "ramp", levels=levels).batch(torch.arange(levels + 1)).data
    assert data.dtype == torch.float32
    assert data.min() == -1
    assert data.max() == 1
    assert torch.equal(((data + 1) * levels / 2).round().to(torch.uint8), images)


def test_batch_follows_the_indices_and_labels_follow_their_images():
    dataset, indices = numbered(), torch.tensor([5, 0, 5, 11])
    batch = dataset.batch(indices)
    assert torch.equal(batch.data, dataset.batch(torch.arange(12)).data[indices])
    assert batch.cond is not None
    assert torch.equal(batch.cond["label"], indices % 3)
    assert batch.cond["label"].dtype == torch.int64


def test_without_labels_there_is_no_condition_and_no_number_of_classes():
    dataset = numbered(labels=False)
    assert dataset.batch(torch.arange(2)).cond is None
    assert dataset.num_classes is None


def test_number_of_classes_counts_named_classes_that_have_no_image():
    images, labels = torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1])
    assert ImageSet(images, "x", labels).num_classes == 2
    assert ImageSet(images, "x", labels, class_names=("a", "b", "c")).num_classes == 3


@pytest.mark.parametrize(("flip", "given"), [(False, True), (True, False), (False, False)])
def test_nothing_is_mirrored_unless_asked_for_and_a_generator_given(flip, given):
    indices = torch.arange(12)
    generator = torch.Generator().manual_seed(0) if given else None
    plain = numbered().batch(indices).data
    assert torch.equal(numbered(flip=flip).batch(indices, generator).data, plain)


def test_each_row_is_mirrored_whole_or_not_at_all_about_half_of_the_time():
    dataset, indices = numbered(flip=True), torch.arange(12).repeat(500)
    plain = dataset.batch(indices).data
    data = dataset.batch(indices, torch.Generator().manual_seed(0)).data
    kept = (data == plain).flatten(1).all(1)
    mirrored = (data == plain.flip(-1)).flatten(1).all(1)
    assert torch.equal(kept, ~mirrored)
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / 6000**0.5  # four standard errors


def test_flips_are_a_function_of_the_key_alone():
    dataset, indices = numbered(flip=True), torch.arange(12)
    first = dataset.batch(indices, keyed_generator(0, "a")).data
    assert torch.equal(dataset.batch(indices, keyed_generator(0, "a")).data, first)
    assert not torch.equal(dataset.batch(indices, keyed_generator(1, "a")).data, first)


def test_flips_draw_one_uniform_a_row_whatever_the_size_of_the_images():
    generator, reference = (torch.Generator().manual_seed(3) for _ in range(2))
    numbered(flip=True).batch(torch.arange(7), generator)
    torch.rand(7, generator=reference)
    assert torch.equal(generator.get_state(), reference.get_state())


def test_digest_is_of_the_content_and_not_of_the_name():
    base = numbered()
    images, labels = base.images, base.labels
    assert labels is not None
    assert base.digest == ImageSet(images.clone(), "other", labels.clone(), flip=True).digest
    other_pixel, other_label = images.clone(), labels.clone()
    other_pixel[0, 0, 0, 0] += 1
    other_label[0] += 1
    others = [
        ImageSet(other_pixel, "x", labels),
        ImageSet(images, "x", other_label),
        ImageSet(images, "x"),
        ImageSet(images, "x", labels, levels=254),
        ImageSet(images.view(-1, 3, 4, 2), "x", labels),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6


def test_digest_of_a_strided_view_is_that_of_its_copy():
    view = torch.arange(96, dtype=torch.uint8).view(4, 2, 3, 4).transpose(-1, -2)
    labels = torch.arange(8)[::2]
    copy = ImageSet(view.contiguous(), "x", labels.contiguous())
    assert ImageSet(view, "x", labels).digest == copy.digest


BYTES = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"images": BYTES.float()}, "uint8.*got torch.float32"),
        ({"images": BYTES[0]}, r"N, C, H, W.*\(1, 2, 2\)"),
        ({"images": BYTES[:0]}, "N >= 1"),
        ({"images": BYTES + 17, "levels": 16}, "above levels = 16"),
        ({"images": BYTES, "labels": torch.zeros(2, dtype=torch.int64)}, r"int64 \[3\]"),
        ({"images": BYTES, "labels": torch.zeros(3)}, "got torch.float32"),
        ({"images": BYTES, "labels": torch.tensor([0, -1, 0])}, "run from -1"),
        ({"images": BYTES, "labels": torch.tensor([0, 1, 2]), "class_names": ("a", "b")}, "to 2; expected 0 to 1"),
    ],
)
def test_bad_content_is_refused_at_construction(arguments, says):
    with pytest.raises(ValueError, match=says):
        ImageSet(name="bad", **arguments)


@pytest.mark.parametrize("flip", [False, True])
def test_the_index_of_a_batch_leads_to_its_samples_mirror_images_too(flip):
    dataset = numbered(flip=flip)
    batch = dataset.batch(torch.arange(12), keyed_generator("flips"))
    assert dataset.index_count == 12 * (1 + flip)
    assert torch.equal(dataset.indexed(batch.index).data, batch.data)
    assert torch.equal(batch.index % 12, torch.arange(12))
    assert bool((batch.index >= 12).any()) is flip
    assert torch.equal(dataset.indexed(torch.arange(dataset.index_count)).data[batch.index], batch.data)
