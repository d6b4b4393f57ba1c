"""``immiscible fetch RECIPE``."""

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from immiscible_diffusion.applications.pusht.environment import simulator_version
from immiscible_diffusion.cli.options import Device, WholeRecipe, named_recipe, parse, take_name
from immiscible_diffusion.couplings import check_coupling_name
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.evaluation.config import PolicyEvaluation
from immiscible_diffusion.evaluation.images import EVAL_SEED
from immiscible_diffusion.metrics import extractor_from_name
from immiscible_diffusion.recipes import digits_flow
from immiscible_diffusion.training.builders import check_trackers, make_model
from immiscible_diffusion.training.load import load_codec
from immiscible_diffusion.training.load import load_raw as load_data
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.optional_deps import MissingDependencyError

HELD_OUT = ("cifar10", "fashion_mnist")  # sets whose test split training validates on
PACKAGES = ("accelerate", "diffusers", "safetensors", "rich", "matplotlib")
CANNOT = (ValueError, MissingDependencyError, OSError)


@dataclass(frozen=True)
class Options:
    """Bring everything a recipe needs, before a job on a node without a network.

    Data go into the cache of ``datasets`` ($HF_HOME, ~/.cache/huggingface), the network that judges
    into $IMMISCIBLE_CACHE (~/.cache/immiscible-diffusion): the job must see the same folders. Says
    what is there and what is missing; exit code 2 if something is.

    Args:
        device: where a classifier that judges is trained, if the recipe asks for one.
        recipe: any field of the recipe, as for train.
    """

    device: Device = "auto"
    recipe: WholeRecipe = field(default_factory=digits_flow)


@dataclass(frozen=True)
class Item:
    """One thing that a recipe needs: ``note`` says what is there, or how to get it."""

    name: str
    there: bool
    note: str


def main(arguments: list[str]) -> int:
    """Fetch, print a line for everything, and count what is missing."""
    name, rest = take_name(arguments, "fetch")
    recipe, rest = named_recipe(name, rest)
    options = parse(Options, rest, f"fetch {name}", Options(recipe=recipe))
    check_coupling_name(options.recipe.coupling)  # a misspelt one is an error, not missing
    items = fetched(options.recipe, options.device)
    for item in items:
        state = "there" if item.there else "missing"
        sys.stdout.write(f"{state:9}{item.name}: {item.note}\n")
    missing = sum(not item.there for item in items)
    if missing:
        sys.stdout.write(f"\n{missing} of {len(items)} missing; {name} cannot run offline yet\n")
    return 2 if missing else 0


def fetched(recipe: Recipe, device: str = "cpu") -> list[Item]:
    """Everything that ``recipe`` needs, brought where it can be."""
    items = [_item("packages", lambda: _packages(recipe))]
    dataset: list[DataSet] = []
    items.append(_item("data", lambda: _data(recipe, dataset)))
    if recipe.data.name in HELD_OUT and recipe.data.split == "train":
        items.append(_item("data for validation", lambda: _held_out(recipe)))
    if not dataset:
        return [*items, Item("network and judge", False, "need the data first")]
    items.append(_item("network", lambda: _network(recipe, dataset[0])))
    items.append(_item("judge", lambda: _judge(recipe, dataset[0], device)))
    return items


def _item(name: str, bring: Callable[[], str]) -> Item:
    """What ``bring`` says it found, or why it is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Item(name, True, bring())
    except CANNOT as error:
        return Item(name, False, " ".join(str(error).split()))


def _packages(recipe: Recipe) -> str:
    check_trackers(recipe.trackers)
    if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise MissingDependencyError(
            f"{', '.join(absent)} not installed; run: pip install 'immiscible-diffusion[train]'"
        )
    return ", ".join([*PACKAGES, *recipe.trackers])


def _data(recipe: Recipe, kept: list[DataSet]) -> str:
    dataset = load_data(recipe.data)
    kept.append(dataset)
    where = recipe.data.path or "the cache"
    if recipe.data.name == "digits":
        where = "scikit-learn"
    note = f", {dataset.note}" if dataset.note else ""
    return f"{dataset.name}, {len(dataset):,} of {_sizes(dataset.shape)} in {where}{note}"


def _held_out(recipe: Recipe) -> str:
    assert isinstance(recipe.data, DataConfig)
    held_out = load_images(replace(recipe.data, split="test", limit=512))
    return f"{held_out.name}, test split"


def _network(recipe: Recipe, dataset: DataSet) -> str:
    codec = load_codec(recipe)
    weights = make_model(recipe, dataset, codec).parameters()
    count = sum(parameter.numel() for parameter in weights)
    begins = "begins untrained"
    if getattr(recipe.model, "init", None) == "pretrained":
        begins = "begins pretrained"
    return f"{type(recipe.model).__name__}, {count:,} parameters, {begins}"


def _judge(recipe: Recipe, dataset: DataSet, device: str) -> str:
    if isinstance(recipe.evaluation, PolicyEvaluation):
        return simulator_version()
    where = "cpu" if device == "auto" else device
    extractor = extractor_from_name(
        recipe.of_images.features, dataset, seed=EVAL_SEED, device=where
    )
    accuracy = getattr(extractor, "accuracy", math.nan)
    known = "" if math.isnan(accuracy) else f", held-out accuracy {accuracy:.1%}"
    return f"{extractor.name}{known}"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
