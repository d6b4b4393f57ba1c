"""Consistency models: CIFAR-10, CelebA and Tiny-ImageNet as published, and a twin for a CPU."""

import dataclasses

from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.loss import ConsistencyLoss
from immiscible_diffusion.model import MLP, UNet
from immiscible_diffusion.path import SigmaPath
from immiscible_diffusion.recipe import Evaluation, Optimiser, Recipe
from immiscible_diffusion.sampler import Sampler


def digits_consistency() -> Recipe:
    """A consistency model of 1,797 real handwritten digits, 8 x 8: minutes on a CPU."""
    return Recipe(
        name="digits-consistency",
        data=DataConfig(name="digits"),
        path=SigmaPath(sigma_data=0.75, mean=-1.1, std=1.6),
        loss=ConsistencyLoss(denoise=0.3, stages=6, huber=0.03),
        model=MLP(width=192, depth=3),
        optimiser=Optimiser(lr=1e-3, warmup=100, ema=0.995, ema_ramp=True),
        batch_size=256,
        steps=4000,
        sampler=Sampler("consistency", steps=1),
        evaluation=Evaluation(samples=1000, points=5, budgets=(1, 2)),
        log_every=50,
        validate_every=500,
        preview_every=1000,
        checkpoint_every=500,
    )


def cifar10_consistency() -> Recipe:
    """Consistency training on CIFAR-10 (Immiscible Diffusion, Fig. 4; Improved, Table 3).

    Batch 512, 800,000 steps (Fig. 4), ``assignment`` or ``knn:k=4``. The papers used the first
    consistency training (2303.01469, in JAX); this is its successor without a teacher (ECT), so
    expect better figures than 10.22 to begin with.
    """
    return Recipe(
        name="cifar10-consistency",
        data=DataConfig(name="cifar10", flip=True),
        path=SigmaPath(mean=-1.1, std=2.0),
        loss=ConsistencyLoss(denoise=0.25),
        model=UNet(),
        optimiser=Optimiser(lr=1e-4, ema=0.9999),
        batch_size=512,
        steps=800_000,
        sampler=Sampler("consistency", steps=1),
        evaluation=Evaluation(samples=50_000, budgets=(1, 2)),
    )


def celeba_consistency() -> Recipe:
    """Consistency training on CelebA, 64 x 64 (Immiscible Diffusion, Fig. 4): batch 1024."""
    return _of_size_64("celeba-consistency", DataConfig(name="hub:nielsr/CelebA-faces"), 1024)


def tiny_imagenet_consistency() -> Recipe:
    """Consistency training on Tiny-ImageNet, 64 x 64 (Immiscible Diffusion, Fig. 4): batch 2048."""
    return _of_size_64(
        "tiny-imagenet-consistency", DataConfig(name="hub:zh-plus/tiny-imagenet"), 2048
    )


def _of_size_64(name: str, data: DataConfig, batch_size: int) -> Recipe:
    return dataclasses.replace(
        cifar10_consistency(),
        name=name,
        data=dataclasses.replace(data, size=64, flip=True),
        model=UNet(multipliers=(1, 2, 2, 2), channels=192, attention=(16, 8)),
        batch_size=batch_size,
    )
