import logging
from dataclasses import replace

import pytest
import torch

from immiscible_diffusion.metrics import extract, extractor_from_name
from immiscible_diffusion.metrics.features.base import PixelFeatures, data_batches
from immiscible_diffusion.metrics.features.classifier import Classifier, ClassifierFeatures


def weights(extractor):
    return extractor.network.state_dict()


def assert_equal_weights(a, b):
    for name, value in weights(a).items():
        assert torch.equal(value, weights(b)[name]), name


def test_classifier_reads_held_out_digits(classifier):
    assert classifier.accuracy >= 0.95
    assert (classifier.name, classifier.dim) == ("classifier (64-d)", 64)


def test_features_are_standardized_and_finite(classifier, digits):
    features = extract(classifier, digits.images.split(256))
    assert features.shape == (1797, 64)
    assert features.dtype == torch.float32
    assert features.mean(0).abs().max() < 0.2
    assert ((features.std(0) > 0.8) & (features.std(0) < 1.2)).all()


def test_a_row_does_not_depend_on_its_batch(classifier, digits):
    whole = classifier(digits.images[:50])
    single = torch.cat([classifier(image[None]) for image in digits.images[:50]])
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-4)


def test_training_is_a_function_of_data_and_seed(classifier, digits):
    uncached = replace(digits, digest=None)
    assert_equal_weights(classifier, ClassifierFeatures.of(uncached))
    other = ClassifierFeatures.of(uncached, seed=1)
    assert not torch.equal(other.network.classify.weight, classifier.network.classify.weight)


def test_the_callers_state_stays(digits):
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    small = replace(digits, images=digits.images[:200], labels=digits.labels[:200], digest=None)
    with torch.inference_mode():
        network = ClassifierFeatures.of(small).network
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not network.training
    assert not any(p.requires_grad or p.is_inference() for p in network.parameters())


def test_cache_gives_the_same_weights_without_training(classifier, digits, cache, monkeypatch):
    monkeypatch.setattr("immiscible_diffusion.metrics.features.classifier._train", None)
    state = torch.get_rng_state()
    again = ClassifierFeatures.of(digits, cache=cache)
    assert_equal_weights(classifier, again)
    assert again.accuracy == classifier.accuracy
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setenv("IMMISCIBLE_CACHE", str(cache))
    assert_equal_weights(classifier, extractor_from_name("classifier", digits))


@pytest.mark.parametrize("damage", ["weights", "no record", "other shape"])
def test_damaged_cache_is_said_and_replaced(digits, tmp_path, monkeypatch, caplog, classifier, damage):
    from safetensors.torch import load_file, save_file

    calls = []

    def train(dataset, seed, device):
        calls.append(seed)
        return Classifier(dataset.shape, 10).eval(), 0.5

    monkeypatch.setattr("immiscible_diffusion.metrics.features.classifier._train", train)
    ClassifierFeatures.of(digits, cache=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    wanted = digits
    if damage == "weights":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "no record":
        save_file(load_file(file), file)
    else:
        wanted = replace(digits, images=digits.images.expand(-1, 3, 8, 8))
    with caplog.at_level(logging.WARNING):
        ClassifierFeatures.of(wanted, cache=tmp_path)
    assert "damaged" in caplog.text
    assert len(calls) == 2
    ClassifierFeatures.of(wanted, cache=tmp_path)
    assert len(calls) == 2
    assert sorted(tmp_path.iterdir()) == [file]


def test_an_unwritable_cache_costs_only_the_next_training(digits, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        "immiscible_diffusion.metrics.features.classifier._train",
        lambda dataset, seed, device: (Classifier(dataset.shape, 10).eval(), 0.5),
    )
    (tmp_path / "file").touch()
    ClassifierFeatures.of(digits, cache=tmp_path / "file" / "folder")
    assert "could not cache" in caplog.text


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 17), (3, 15, 16), (3, 64, 64)])
def test_network_takes_any_size_from_8(shape):
    network = Classifier(shape, 10).eval()
    data = torch.zeros(2, *shape)
    assert network.features(data).shape == (2, 64)
    assert network(data).shape == (2, 10)
    assert min(network.convolutions[:-2](data).shape[2:]) in range(2, 8)


def test_pixels_are_the_values(digits):
    extractor = extractor_from_name("pixels", digits)
    assert isinstance(extractor, PixelFeatures)
    assert (extractor.name, extractor.dim) == ("pixels (64-d)", 64)
    features = extract(extractor, data_batches(digits, torch.arange(1000, 1700), size=100))
    assert torch.equal(features, digits.images[1000:1700].flatten(1))
    assert extract(extractor, []).shape == (0, 64)


def test_bad_requests_are_named(digits, classifier):
    with pytest.raises(ValueError, match="'fid'; options: classifier, pixels, efficientnet"):
        extractor_from_name("fid", digits)
    with pytest.raises(ValueError, match="has none; use the features 'pixels'"):
        extractor_from_name("classifier", replace(digits, labels=None, num_classes=None))
    with pytest.raises(ValueError, match=r"at least 8 x 8, got \[1, 7, 8\]"):
        extractor_from_name("classifier", replace(digits, images=digits.images[:, :, 1:]))
    with pytest.raises(ValueError, match='no cond\\["label"\\]'):
        extractor_from_name("classifier", replace(digits, labels=None, digest=None))
    for extractor in (classifier, extractor_from_name("pixels", digits)):
        with pytest.raises(ValueError, match=r"\[B, 1, 8, 8\], got \[4, 8, 8\]"):
            extractor(torch.zeros(4, 8, 8))
