"""From a recipe to the objects that train: device, data, coupling, network, optimizer."""

import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import precision_of
from immiscible_diffusion.applications.stable_diffusion.unet import TextUNet
from immiscible_diffusion.couplings import Coupling, NoiseDistribution, parse_coupling
from immiscible_diffusion.couplings.masked import MaskedCoupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.diffusion.losses import ConsistencyLoss
from immiscible_diffusion.diffusion.paths import EDMPath, Preconditioned
from immiscible_diffusion.models import PolicyMLP, UNet1D
from immiscible_diffusion.training.codec import Codec
from immiscible_diffusion.training.load import whole_rows
from immiscible_diffusion.training.pixels import Pixels
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.device import is_accelerated
from immiscible_diffusion.utils.optional_deps import MissingDependencyError, require_extra
from immiscible_diffusion.utils.random import RandomStreams, key

MOMENTS_DATA = 10_000
DATA_PER_LABEL = 100
LAW_NOISES, LAW_PASSES = 50_000, 50
PIXELS = Pixels()
PATIENCE = timedelta(days=2)  # ranks wait while one judges; the default gives up after 10 minutes
SHARDED = ("DEEPSPEED", "FSDP", "MEGATRON_LM")


def make_accelerator(recipe: Recipe, device: str, run: RunDir) -> Any:
    """Accelerate's view of the machine; ``device`` is auto, cpu, cuda or mps."""
    with require_extra("train", "training"):
        from accelerate import Accelerator
        from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
    check_trackers(recipe.trackers)
    if device not in ("auto", "cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {device!r}")
    # Without an accelerator said so: else processes on a CPU would not know of each other.
    on_cpu = device == "cpu" or (device == "auto" and not is_accelerated())
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=recipe.mixed_precision,
        # As a plugin, since accelerate's environment overrides the plain number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=recipe.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=list(recipe.trackers) or None,
        project_dir=str(run.root),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.distributed_type.value in SHARDED:
        raise ValueError(
            f"{accelerator.distributed_type.value} splits weights or their state over ranks, which "
            f"checkpoints and the average do not know; use accelerate launch --multi_gpu"
        )
    if device != "auto" and accelerator.device.type != device:
        raise ValueError(f"device {device} is not available here; use auto or cpu")
    return accelerator


def check_trackers(names: Iterable[str]) -> None:
    """Raise MissingDependencyError for a tracker that is not installed (accelerate would pass over it)."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(
                f"the tracker {name} is not installed; "
                f"run: pip install 'immiscible-diffusion[{name}]'"
            )


def make_model(recipe: Recipe, dataset: DataSet, codec: Codec = PIXELS) -> nn.Module:
    """The network with its initial weights, which depend on the seed (and a pipeline) alone.

    Raises:
        ValueError: the recipe is conditional and the data have no labels, or the network does not
            fit the codec.
    """
    by_label = recipe.conditional and not recipe.by_text
    classes = dataset.num_classes if by_label else None
    told = getattr(dataset, "condition_shapes", {})  # what besides labels
    if by_label and classes is None and not told:
        raise ValueError(
            f"the recipe is conditional, and the data set {dataset.name} has no labels; "
            f"give data with labels, or --no-conditional"
        )
    if classes is not None and recipe.cond_drop_prob:
        classes += 1  # the last stands for no label
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(recipe.seed, "weights"))
        shape = codec.shape(dataset.shape)
        if told and isinstance(recipe.model, (UNet1D, PolicyMLP)):
            model = recipe.model.build(shape, classes, conditions=told)
        else:
            model = recipe.network.build(shape, classes)
    if isinstance(model, TextUNet) and isinstance(codec, LatentCodec):
        _fit_text(model, codec, recipe)
    if not isinstance(recipe.path, EDMPath):
        return model
    ends = recipe.path.sigma_min if isinstance(recipe.loss, ConsistencyLoss) else 0.0
    return Preconditioned(model, recipe.path.sigma_data * recipe.scaling.factor, ends)


def _fit_text(model: TextUNet, codec: LatentCodec, recipe: Recipe) -> None:
    """Frozen weights in half precision; ValueError if the network attends to other states."""
    if model.text_width != codec.width:
        raise ValueError(
            f"the U-Net attends to text states of width {model.text_width}, and those of "
            f"{recipe.codec} have {codec.width}; give a U-Net and a codec of one pipeline"
        )
    model.cast_frozen(precision_of(recipe.mixed_precision))


def make_coupling(
    recipe: Recipe,
    dataset: DataSet,
    run: RunDir,
    device: torch.device,
    codec: Codec = PIXELS,
) -> Coupling:
    """The recipe's coupling; moments and law are measured on first use, and kept in the run."""

    def law(inner: Coupling) -> NoiseDistribution:
        return _law(recipe, dataset, run, inner, run.calibration, codec).to(device)

    coupling = parse_coupling(
        recipe.coupling, lambda: _moments(recipe, dataset, run, codec).to(device), law
    )
    painting = codec.painting if isinstance(codec, LatentCodec) else None
    return (
        MaskedCoupling(coupling)
        if painting is not None and painting.pair_masked_region
        else coupling
    )


def init_noise_distribution(
    recipe: Recipe,
    dataset: DataSet,
    run: RunDir,
    coupling: Coupling,
    device: torch.device,
    codec: Codec = PIXELS,
) -> NoiseDistribution | None:
    """The law that ``coupling`` trains the model on, if the recipe's sampler starts from it."""
    if recipe.sampler.init_noise != "matched":
        return None
    if isinstance(coupling, MaskedCoupling):
        raise ValueError(
            "noise paired inside holes has another law for every hole, and none to start from; "
            "use sampler.init_noise normal, or drop painting.pair_masked_region"
        )
    return _law(recipe, dataset, run, coupling, run.law, codec).to(device)


def _moments(recipe: Recipe, dataset: DataSet, run: RunDir, codec: Codec) -> Moments:
    """Fitted once and read again; those of a run that never began may be of other data."""
    if not (run.has_begun and run.moments.exists()):
        Moments.fit(_labeled(_some_data(recipe, dataset, codec))).save(run.moments)
    return Moments.load(run.moments)


def _law(
    recipe: Recipe,
    dataset: DataSet,
    run: RunDir,
    coupling: Coupling,
    path: Path,
    codec: Codec,
) -> NoiseDistribution:
    """The law of the coupling's noise, measured once and read again, as the moments."""
    if not (run.has_begun and path.exists()):
        count = min(len(dataset), MOMENTS_DATA)
        passes = range(min(LAW_PASSES, -(-LAW_NOISES // count)))
        batches = (batch for epoch in passes for batch in _some_data(recipe, dataset, codec, epoch))
        NoiseDistribution.measure(
            coupling,
            _labeled(batches),
            _moments(recipe, dataset, run, codec),
            by_label=recipe.conditional and dataset.num_classes is not None,
            generator=RandomStreams(recipe.seed, rank=0).noise,
        ).save(path)
    return NoiseDistribution.load(path)


def _some_data(recipe: Recipe, dataset: DataSet, codec: Codec, epoch: int = 0) -> Iterator[Batch]:
    """Some data, augmented, encoded and scaled as in training, in batches of its size.

    About ten thousand, and more where a conditional recipe has many labels.
    """
    wanted = MOMENTS_DATA
    if recipe.conditional and dataset.num_classes:
        wanted = max(wanted, DATA_PER_LABEL * dataset.num_classes)
    streams = RandomStreams(recipe.seed, epoch, rank=0)
    rows = whole_rows(dataset)
    order = rows[torch.randperm(len(rows), generator=streams.order)[:wanted]]
    augment, encode = streams.augment, codec_generator(codec, streams)
    # What a codec is given at a time must not depend on how many ranks share a batch.
    micro = recipe.batch_size // recipe.gradient_accumulation_steps
    size = codec.at_once if isinstance(codec, LatentCodec) else micro
    for chosen in order.split(size):
        batch = dataset.batch(chosen, augment)
        if isinstance(codec, LatentCodec):  # no tokens, which cost and are not needed
            label = {name: value for name, value in (batch.cond or {}).items() if name == "label"}
            batch = codec.encode(Batch(batch.data, label or None), encode)
        yield recipe.as_seen(batch).to("cpu")  # where law and moments are measured


def codec_generator(codec: Codec, streams: RandomStreams) -> torch.Generator:
    """What ``codec`` may draw from, where it works."""
    device = codec.place[0] if isinstance(codec, LatentCodec) else torch.device("cpu")
    return replace(streams, device=device).encode


def _labeled(batches: Iterable[Batch]) -> Iterator[Any]:
    """Data with their labels, where they have any."""
    for batch in batches:
        labels = (batch.cond or {}).get("label")
        yield batch.data if labels is None else (batch.data, labels)
