"""Consistency models: CIFAR-10, CelebA and Tiny-ImageNet as published, and a twin for a CPU."""

from dataclasses import replace
from typing import Any

from immiscible_diffusion.applications.images.task import Images
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.diffusion.losses import ConsistencyLoss
from immiscible_diffusion.diffusion.paths import EDMPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.models import MLP, UNet
from immiscible_diffusion.recipes.flow_matching import digits_flow
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.recipe import Recipe


def digits_consistency() -> Recipe:
    """``digits-flow`` as a consistency model: minutes on a CPU.

    Sampling starts from sigma 10, which training sees in 3 of 100 data; 80, as for CIFAR-10, it would hardly ever see
    in a run of this length.
    """
    recipe = digits_flow()
    return replace(
        recipe,
        name="digits-consistency",
        task=recipe.task.replace(eval=replace(recipe.task.eval, sampling_steps=(1, 2), steps=(1250, 2500, 5000))),
        path=EDMPath(sigma_max=10.0, sigma_data=0.75, mean=-0.4, std=1.4),
        loss=ConsistencyLoss(pretrain_fraction=0.2, num_stages=6, huber=0.03),
        model=MLP(width=160, depth=6),
        optim=OptimizerConfig(lr=2e-3, warmup_steps=100),
        steps=5000,
        sampler=SamplerConfig("consistency", steps=1),
        validate_every=500,
        preview_every=1000,
        checkpoint_every=500,
    )


def cifar10_consistency() -> Recipe:
    """Consistency training on CIFAR-10 (Immiscible Diffusion, Fig. 4; Improved, Table 3).

    Batch 512, 800,000 steps (Fig. 4), ``assignment`` (10.22 -> 8.54) or ``knn:k=4`` (9.16). The papers used the first
    consistency training (2303.01469, in JAX); this is its successor without a teacher (ECT, 2406.14548: its weight,
    its dropout, its rate with RAdam, here Adam), so compare ours with ours. ECT starts from a trained EDM; here the
    first quarter denoises.
    """
    return Recipe(
        task=Images(
            data=DataConfig(name="cifar10", flip=True), eval=ImageEvalConfig(samples=50_000, sampling_steps=(1, 2))
        ),
        name="cifar10-consistency",
        path=EDMPath(mean=-1.1, std=2.0),
        loss=ConsistencyLoss(pretrain_fraction=0.25, huber=0.0, weighting="gap"),
        model=UNet(dropout=0.2, init="zero"),
        optim=OptimizerConfig(lr=1e-4),
        batch_size=512,
        steps=800_000,
        sampler=SamplerConfig("consistency", steps=1),
        checkpoint_every=50_000,
        checkpoints_total_limit=None,
    )


def celeba_consistency() -> Recipe:
    """Consistency training on CelebA, 64 x 64 (Immiscible Diffusion, Fig. 4): batch 1024.

    Published: about 1.3 times fewer steps with ``assignment``. The set has no labels to train a classifier on, so FID
    it is. The crop is that of ddpm-torch; the paper's is not known.
    """
    data = DataConfig(name="hub:nielsr/CelebA-faces", crop=(40, 15, 148, 148), resize="bilinear")
    return _of_size_64("celeba-consistency", data, 1024, features="inception")


def tiny_imagenet_consistency() -> Recipe:
    """Consistency training on Tiny-ImageNet, 64 x 64 (Immiscible Diffusion, Fig. 4): batch 2048.

    Published: about 1.2 times fewer steps with ``assignment``.
    """
    data = DataConfig(name="hub:zh-plus/tiny-imagenet")
    return _of_size_64("tiny-imagenet-consistency", data, 2048)


def _of_size_64(name: str, data: DataConfig, batch_size: int, **evaluation: Any) -> Recipe:
    """With the network of openai/consistency_models for 64 x 64; the paper's size is unknown."""
    recipe, data = cifar10_consistency(), replace(data, size=64, flip=True)
    return replace(
        recipe,
        name=name,
        task=recipe.task.replace(data=data, eval=replace(recipe.task.eval, **evaluation)),
        model=UNet(192, (1, 2, 3, 4), blocks=3, attention=(32, 16, 8), dropout=0.0, init="zero"),
        batch_size=batch_size,
        checkpoint_every=5000,
        checkpoints_total_limit=1,  # each is of gigabytes
    )
