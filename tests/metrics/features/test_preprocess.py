import numpy as np
import pytest
import torch
from torch import nn

from immiscible_diffusion.data import ImageSet
from immiscible_diffusion.metrics.features.preprocess import Preprocessing, to_bytes, weights_digest
from immiscible_diffusion.metrics.features.pretrained import NetworkFeatures

PLAIN_2 = Preprocessing(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PLAIN = Preprocessing(40, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def pictures(generator, *shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_bytes_of_a_data_set_come_back_exactly():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    data = ImageSet(every.contiguous(), "every byte").batch(torch.tensor([0, 1])).data
    assert torch.equal(to_bytes(data), every)


def test_samples_are_rounded_and_clipped_and_gray_is_in_three_colors():
    data = torch.tensor([-1.2, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 1.3]).view(1, 1, 1, 5)
    assert to_bytes(data).tolist() == [[[[0, 0, 0, 1, 255]]] * 3]


def test_a_picture_and_its_file_are_the_same_bytes(generator, tmp_path):
    image = pytest.importorskip("PIL.Image")
    from immiscible_diffusion.utils.images import image_grid

    data = torch.rand(1, 3, 9, 7, generator=generator) * 2.2 - 1.1
    image_grid(data).save(tmp_path / "sample.png")
    read = np.asarray(image.open(tmp_path / "sample.png"))
    assert np.array_equal(to_bytes(data)[0].permute(1, 2, 0).numpy(), read)


@pytest.mark.parametrize("size", [13, 40, 96])
def test_resizing_is_pillows(generator, size):
    image = pytest.importorskip("PIL.Image")
    given = pictures(generator, 1, 3, 32, 32)
    resized = Preprocessing(size, PLAIN.mean, PLAIN.std)(given)[0]
    channels = [
        image.fromarray(channel.float().numpy(), mode="F").resize((size, size), image.BICUBIC) for channel in given[0]
    ]
    expected = np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)
    np.testing.assert_allclose(resized.numpy(), expected, atol=0.01)
    eight_bit = image.fromarray(given[0].permute(1, 2, 0).numpy()).resize((size, size), image.BICUBIC)
    rounded = Preprocessing(size, PLAIN.mean, PLAIN.std, rounded=True)(given)[0]
    # Pillow computes in fixed point, which now and then rounds to the neighboring byte, twice.
    apart = np.abs(rounded.permute(1, 2, 0).numpy() - np.asarray(eight_bit))
    assert apart.max() <= 2
    assert (apart > 0).mean() < 0.03


def test_standardizing_is_by_color(generator):
    given = pictures(generator, 2, 3, 40, 40)
    made = Preprocessing(40, (1.0, 2.0, 3.0), (2.0, 4.0, 8.0))(given)
    for channel, (mean, std) in enumerate([(1, 2), (2, 4), (3, 8)]):
        expected = (given[:, channel].float() - mean) / std
        torch.testing.assert_close(made[:, channel], expected, atol=1e-3, rtol=0)


def test_words_tell_preprocessings_apart():
    others = [
        Preprocessing(41, PLAIN.mean, PLAIN.std),
        Preprocessing(40, (1.0, 0.0, 0.0), PLAIN.std),
        Preprocessing(40, PLAIN.mean, (2.0, 1.0, 1.0)),
        Preprocessing(40, PLAIN.mean, PLAIN.std, rounded=True),
    ]
    assert len({str(one) for one in [PLAIN, *others]}) == 5


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 2, 8, 8), (1, 4, 8, 8)])
def test_other_shapes_are_an_error(shape):
    with pytest.raises(ValueError, match="use the features 'pixels'"):
        to_bytes(torch.zeros(shape))


def test_networks_run_in_float32_in_chunks_and_leave_the_settings(generator):
    before = torch.backends.cuda.matmul.allow_tf32
    calls = []

    def forward(network, images):
        calls.append((len(images), torch.backends.cuda.matmul.allow_tf32))
        return network(images.flatten(1))

    network = nn.Linear(12, 2)
    extractor = NetworkFeatures(network, forward, "spy", 2, "spy", PLAIN_2, str(PLAIN_2))
    data = torch.rand(150, 3, 2, 2, generator=generator) * 2 - 1
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = extractor(data)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert calls == [(64, False), (64, False), (22, False)]
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, network(PLAIN_2(to_bytes(data)).flatten(1)).detach())


def test_the_digest_follows_every_weight():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = weights_digest(network)
    assert weights_digest(network) == before
    network[1].running_mean += 1
    assert weights_digest(network) != before
