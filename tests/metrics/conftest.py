from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from immiscible_diffusion.data import DataSet
from immiscible_diffusion.metrics.features.classifier import ClassifierFeatures
from immiscible_diffusion.utils.batch import Batch


@dataclass(frozen=True)
class LabeledImages(DataSet):
    """A stand-in for the project's image sets."""

    images: Tensor
    labels: Tensor | None = None
    num_classes: int | None = None
    digest: str | None = None
    name: str = "stand-in"
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        cond = None if self.labels is None else {"label": self.labels[indices]}
        return Batch(self.images[indices], cond)


@pytest.fixture(scope="session")
def digits() -> LabeledImages:
    datasets = pytest.importorskip("sklearn.datasets", reason="digits come with scikit-learn")
    raw = datasets.load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
    return LabeledImages(images, torch.tensor(raw.target), 10, digest="digits", name="digits")


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    pytest.importorskip("safetensors")
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def classifier(digits, cache) -> ClassifierFeatures:
    return ClassifierFeatures.of(digits, cache=cache)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
