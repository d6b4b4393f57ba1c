"""A small image classifier, trained once per data set and cached, whose features score samples."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.metrics.features.base import FeatureExtractor, check_shape
from immiscible_diffusion.metrics.features.preprocess import in_full_precision, weights_digest
from immiscible_diffusion.metrics.reference_cache import cache_folder
from immiscible_diffusion.utils.random import hash_seed, keyed_generator
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

log = logging.getLogger(__name__)

FEATURES = 64
VERSION = 2  # of architecture and training; a change makes cached classifiers stale
_EPOCHS = 16
_MIN_STEPS, _MAX_STEPS = 200, 600  # longer training collapses each class to a point
_BATCH = 128
_RATE = 3e-3
_HELD_OUT = 5000


class Classifier(nn.Module):
    """Convolutions down to about 4 x 4, a linear layer of 64 standardized features, class scores.

    For images of ``shape`` (C, H, W), H and W at least 8, and ``num_classes`` classes.
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        # 8 x 8 and larger: two halvings; 16: three; then one more for every doubling from 64 on.
        halvings = 2 if side < 16 else max(3, side.bit_length() - 3)
        strides = [1 if side < 16 else 2, 2, 2] + [2] * (halvings - 3)
        widths = [channels, 32] + [64] * (len(strides) - 1)
        self.convolutions = nn.Sequential(
            *map(_block, widths, widths[1:], strides), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.project = nn.Linear(4 * widths[-1], FEATURES)
        self.standardize = nn.BatchNorm1d(FEATURES, affine=False)
        self.classify = nn.Linear(FEATURES, num_classes)

    def features(self, data: Tensor) -> Tensor:
        """Features [B, 64] of data [B, C, H, W]."""
        return self.standardize(self.project(self.convolutions(data)))

    def forward(self, data: Tensor) -> Tensor:
        """Class scores [B, num_classes]."""
        return self.classify(nn.functional.silu(self.features(data)))


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


@dataclass(frozen=True, eq=False)
class ClassifierFeatures(FeatureExtractor):
    """The penultimate layer of a small network trained on the set's own labels.

    Over its training data every feature has mean 0 and variance about 1, so distances have the same scale for every
    set and seed. Figures are comparable only for one set and one seed: the features are not Inception's.
    """

    network: Classifier  # the classifier, in evaluation mode
    shape: tuple[int, ...]  # shape of one sample
    accuracy: float = float("nan")  # fraction of held-out images that it labels correctly

    dim = FEATURES
    name = f"classifier ({FEATURES}-d)"
    distance = "Frechet distance in features of the set's own classifier (not FID)"
    preprocessing = "none"

    @cached_property
    def identity(self) -> str:
        """Name and a hash of the weights, which depend on data and seed."""
        return f"{self.name} / weights {weights_digest(self.network)}"

    @classmethod
    def of(
        cls, dataset: DataSet, *, seed: int = 0, device: torch.device | str = "cpu", cache: Path | None = None
    ) -> "ClassifierFeatures":
        """Train the classifier of ``dataset``, or read it from the cache.

        The cache (``cache_folder``) is used if the data set has a ``digest``. On the CPU the
        weights are a function of data and seed. The caller's random state and thread count stay as
        they were. Of the images 1 in 5, at most 5,000, is held out for the accuracy.

        Raises:
            ValueError: on a set that is not of images [C, H, W] of at least 8 x 8 with labels.
        """
        shape, classes = tuple(dataset.shape), dataset.num_classes
        problem = None
        if len(shape) != 3 or min(shape[1:]) < 8:
            problem = f"images [C, H, W] of at least 8 x 8, got {list(shape)}"
        elif classes is None:
            problem = f"labels, and the data set {dataset.name!r} has none"
        elif classes < 2 or len(dataset) < 10:
            problem = f"at least 2 classes and 10 images, got {classes} and {len(dataset)}"
        if problem:
            raise ValueError(f"classifier features need {problem}; use the features 'pixels'")
        network, accuracy = trained_classifier(dataset, seed=seed, device=device, cache=cache)
        return cls(network, shape, accuracy)

    @torch.no_grad()
    def __call__(self, data: Tensor) -> Tensor:
        """Features [B, 64] float32 of data [B, C, H, W], on the network's device."""
        check_shape(data, self.shape)
        device = next(self.network.parameters()).device
        with in_full_precision(device):
            return self.network.features(data.to(device, torch.float32))


def trained_classifier(
    dataset: DataSet, *, seed: int, device: torch.device | str, cache: Path | None
) -> tuple[Classifier, float]:
    """The classifier of ``dataset``, in evaluation mode, and its accuracy on held-out images."""
    if dataset.digest is None:
        return _train(dataset, seed, device)
    file = cache_folder(cache) / f"classifier-v{VERSION}-{hash_seed(dataset.digest, VERSION, seed):016x}.safetensors"
    if file.exists():
        try:
            with torch.random.fork_rng(devices=[]):
                network = Classifier(tuple(dataset.shape), dataset.num_classes or 0)
            weights, about = load_tensors(file)
            accuracy = float(about["accuracy"])
            network.load_state_dict(weights)
            return network.to(device, torch.float32).eval().requires_grad_(False), accuracy
        except (ValueError, KeyError, RuntimeError) as error:
            log.warning("the cached classifier %s is damaged (%s); training it again", file, error)
    network, accuracy = _train(dataset, seed, device)
    about = {"accuracy": repr(accuracy), "data": dataset.name, "seed": str(seed)}
    try:
        save_tensors(file, network.state_dict(), about)
    except OSError as error:  # which costs only the next training
        log.warning("could not cache the classifier in %s (%s)", file.parent, error)
    return network, accuracy


def _train(dataset: DataSet, seed: int, device: torch.device | str) -> tuple[Classifier, float]:
    def labeled(indices: Tensor) -> tuple[Tensor, Tensor]:
        batch = dataset.batch(indices).to(device)
        if batch.cond is None or "label" not in batch.cond:
            raise ValueError(
                f"the data set {dataset.name!r} promises {dataset.num_classes} classes, but its "
                f'batches carry no cond["label"]'
            )
        return batch.data.float(), batch.cond["label"]

    order = torch.randperm(len(dataset), generator=keyed_generator(seed, "classifier split"))
    held_out, train = order.tensor_split([min(len(order) // 5, _HELD_OUT)])
    steps = min(max(_EPOCHS * len(train) // _BATCH, _MIN_STEPS), _MAX_STEPS)
    generator = keyed_generator(seed, "classifier order")
    epochs = range(-(-steps * _BATCH // len(train)))
    order = torch.cat([train[torch.randperm(len(train), generator=generator)] for _ in epochs])
    with _isolated_state(seed, device):
        network = Classifier(tuple(dataset.shape), dataset.num_classes or 0).to(device, torch.float32)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
        for indices in order[: steps * _BATCH].split(_BATCH):
            data, label = labeled(indices)
            loss = nn.functional.cross_entropy(network(data), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval().requires_grad_(False)
        correct = 0
        for indices in held_out.split(512):
            data, label = labeled(indices)
            correct += int((network(data).argmax(dim=1) == label).sum())
    accuracy = correct / len(held_out)
    log.info("classifier of %s: held-out accuracy %.3f", dataset.name, accuracy)
    return network, accuracy


@contextmanager
def _isolated_state(seed: int, device: torch.device | str) -> Iterator[None]:
    """Seeded global generators, one thread and gradients inside; the caller's state afterwards."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    threads = torch.get_num_threads()
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False),
    ):
        torch.set_num_threads(1)
        try:
            torch.manual_seed(hash_seed(seed, "classifier"))
            yield
        finally:
            torch.set_num_threads(threads)
