"""``immiscible download RECIPE``."""

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


@dataclass(frozen=True)
class Options:
    """Get everything a recipe needs, before a job on a node without a network.

    Data go into the cache of ``datasets`` ($HF_HOME, ~/.cache/huggingface), networks for features
    into $IMMISCIBLE_CACHE (~/.cache/immiscible-diffusion): the job must see the same folders.
    Prints what is there and what is missing; exit code 2 if something is.

    Args:
        device: where a classifier for features is trained, if the recipe asks for one.
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
    """Download, print a line for everything, and count what is missing."""
    name, rest = take_name(arguments, "download")
    recipe, rest = named_recipe(name, rest)
    options = parse(Options, rest, f"download {name}", Options(recipe=recipe))
    check_coupling_name(options.recipe.coupling)  # a misspelt one is an error, not missing
    items = download(options.recipe, options.device)
    for item in items:
        state = "there" if item.there else "missing"
        sys.stdout.write(f"{state:9}{item.name}: {item.note}\n")
    missing = sum(not item.there for item in items)
    if missing:
        sys.stdout.write(f"\n{missing} of {len(items)} missing; {name} cannot run offline yet\n")
    return 2 if missing else 0


def download(recipe: Recipe, device: str = "cpu") -> list[Item]:
    """Everything that ``recipe`` needs, downloaded where it can be."""
    items: list[Item] = []
    dataset: DataSet | None = None

    def get(name: str, note: Callable[[], str]) -> None:
        """Add an item: ``note`` gets it and says what it is, or raises what is missing."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                items.append(Item(name, True, note()))
        except (ValueError, MissingDependencyError, OSError) as error:
            items.append(Item(name, False, " ".join(str(error).split())))

    def packages() -> str:
        check_trackers(recipe.trackers)
        if absent := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
            raise MissingDependencyError(
                f"{', '.join(absent)} not installed; run: pip install 'immiscible-diffusion[train]'"
            )
        return ", ".join([*PACKAGES, *recipe.trackers])

    def data() -> str:
        nonlocal dataset
        dataset = load_data(recipe.data)
        where = "scikit-learn" if recipe.data.name == "digits" else recipe.data.path or "the cache"
        note = f", {dataset.note}" if dataset.note else ""
        size = " x ".join(map(str, dataset.shape))
        return f"{dataset.name}, {len(dataset):,} of {size} in {where}{note}"

    def validation() -> str:
        assert isinstance(recipe.data, DataConfig)
        return f"{load_images(replace(recipe.data, split='test', limit=512)).name}, test split"

    def network() -> str:
        assert dataset is not None
        model = make_model(recipe, dataset, load_codec(recipe))
        count = sum(parameter.numel() for parameter in model.parameters())
        pretrained = getattr(recipe.model, "init", None) == "pretrained"
        start = "pretrained" if pretrained else "untrained"
        return f"{type(recipe.model).__name__}, {count:,} parameters, begins {start}"

    def evaluation() -> str:
        assert dataset is not None
        if isinstance(recipe.evaluation, PolicyEvaluation):
            return simulator_version()
        where = "cpu" if device == "auto" else device
        features = recipe.of_images.features
        extractor = extractor_from_name(features, dataset, seed=EVAL_SEED, device=where)
        accuracy = getattr(extractor, "accuracy", math.nan)
        known = "" if math.isnan(accuracy) else f", held-out accuracy {accuracy:.1%}"
        return f"{extractor.name}{known}"

    get("packages", packages)
    get("data", data)
    if recipe.data.name in HELD_OUT and recipe.data.split == "train":
        get("data for validation", validation)
    if dataset is None:
        return [*items, Item("network and evaluation", False, "need the data first")]
    get("network", network)
    get("evaluation", evaluation)
    return items
