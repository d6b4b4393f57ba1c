"""Command lines to dataclasses, by tyro."""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import tyro

from immiscible_diffusion.applications.stable_diffusion.load_pipeline import PretrainedPipeline
from immiscible_diffusion.cli.renamed import check_options
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.diffusion.losses import ConsistencyLoss
from immiscible_diffusion.diffusion.paths import EDMPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.experiments.compare.plan import TINY
from immiscible_diffusion.recipes import RECIPES, recipe_from_name
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.task import TaskConfig
from immiscible_diffusion.utils.checks import check_fields
from immiscible_diffusion.utils.serialization import kinds_of

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda", "mps"]
Switch = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Names = tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]]
"""Of an option that takes several names and may be repeated: ``--coupling A B --coupling C``."""


@dataclass(frozen=True)
class RecipeOptions(Recipe):
    """A recipe whose task's fields are options of their own: ``--data.name``, ``--eval.num``."""

    task: Annotated[TaskConfig, tyro.conf.arg(name="")]

    @classmethod
    def of(cls, recipe: Recipe) -> "RecipeOptions":
        """Return ``recipe`` as options."""
        return cls(**{f.name: getattr(recipe, f.name) for f in dataclasses.fields(Recipe)})

    def recipe(self) -> Recipe:
        """Return the recipe that the options describe."""
        return Recipe(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Recipe)})


WholeRecipe = Annotated[RecipeOptions, tyro.conf.arg(name="")]


def parse(kind: type[T], arguments: Sequence[str], prog: str, default: T | None = None) -> T:
    """Read ``arguments`` as a ``kind``; tyro prints help and its errors, and exits.

    ValueError if an option has another name by now.
    """
    settings: dict[str, Any] = {} if default is None else {"default": default}
    settings |= {"prog": f"immiscible {prog}", "config": (tyro.conf.AvoidSubcommands,)}
    options, unknown = tyro.cli(kind, args=list(arguments), return_unknown_args=True, **settings)
    if unknown:
        check_options(unknown, prog.partition(" ")[0])
        tyro.cli(kind, args=list(arguments), **settings)  # names what is like them, and exits
    check_fields(options)
    return options


def take_name(arguments: Sequence[str], command: str) -> tuple[str, list[str]]:
    """Split off the recipe's name, the first argument that is no option."""
    if list(arguments[:1]) == ["--tiny"]:
        arguments = [*arguments[1:], "--tiny"]
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    known = ", ".join(RECIPES)
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(
            f"usage: immiscible {command} RECIPE [options]\n\nRecipes: {known}\n\n"
            f"immiscible {command} digits-flow --help lists the options.\n"
        )
        raise SystemExit(0)
    raise ValueError(f"which recipe? immiscible {command} RECIPE ...; known: {known}")


def named_recipe(name: str, arguments: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe called ``name`` with parts of other kinds, shrunk if asked for; other arguments.

    ``--model.kind DiT``, ``--path.kind`` and ``--loss.kind`` choose a class with its defaults, then ``--tiny`` shrinks
    the recipe, with ``--codec.pretrained`` to what that pipeline predicts; all other options change the result.
    tyro's own subcommands (``model:di-t``) cannot do that: they act after ``--tiny``, choose no sampler that suits a
    path, and do not go with the options of ``compare``.
    """
    recipe, hints = recipe_from_name(name), typing.get_type_hints(Recipe)
    parser = argparse.ArgumentParser(f"immiscible ... {name}", add_help=False, allow_abbrev=False)
    parser.usage = argparse.SUPPRESS
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--codec.pretrained", dest="pipeline")
    kinds: dict[str, dict[str, type]] = {}
    for part in ("model", "path", "loss"):
        kinds[part] = {name.lower(): kind for name, kind in kinds_of(hints[part]).items()}
        parser.add_argument(f"--{part}.kind", dest=part, type=str.lower, choices=[*kinds[part]])
    words, rest = parser.parse_known_args(list(arguments))
    changes: dict[str, Any] = {}
    for part, classes in kinds.items():
        kind = classes.get(getattr(words, part))
        if kind is not None and not isinstance(getattr(recipe, part), kind):
            changes[part] = kind()
    if "path" in changes or "loss" in changes:
        path, loss = changes.get("path", recipe.path), changes.get("loss", recipe.loss)
        changes["sampler"] = usual_sampler(path, loss)
    recipe = dataclasses.replace(recipe, **changes)
    if words.tiny:  # under a name of its own, so that it leaves the folder of the real run alone
        data, recipe = recipe.task.data, dataclasses.replace(recipe.tiny(), name=f"{recipe.name}{TINY}")
        own = any(word.startswith("--data.name") for word in rest)
        if isinstance(data, DataConfig) and data.name != recipe.task.data.name and not own:
            sys.stderr.write(f"--tiny: the data set {recipe.task.data.name} stands in for {data.name}\n")
    if words.pipeline is not None:
        rest += ["--codec.pretrained", words.pipeline]
        if words.tiny and isinstance(recipe.path, VPPath):  # small pipelines need not predict what published ones do
            prediction = PretrainedPipeline.open(words.pipeline).prediction or recipe.path.prediction
            recipe = dataclasses.replace(recipe, path=dataclasses.replace(recipe.path, prediction=prediction))
    return recipe, rest


def usual_sampler(path: Any, loss: Any) -> SamplerConfig:
    """The usual sampler of a path, or of consistency models."""
    if isinstance(loss, ConsistencyLoss):
        return SamplerConfig("consistency", steps=1)
    if isinstance(path, VPPath):
        return SamplerConfig("ddim", steps=50)
    return SamplerConfig("edm", steps=18) if isinstance(path, EDMPath) else SamplerConfig()


def flat(names: tuple[tuple[str, ...], ...], option: str) -> tuple[str, ...]:
    """Return the names of an option; ValueError where it is followed by none."""
    if () in names:
        raise ValueError(f"{option} is followed by one name at least")
    return tuple(name.strip() for several in names for name in several)


def set_threads(threads: int | None) -> None:
    """Let torch use so many threads of the processor, its own choice by default."""
    if threads is not None:
        torch.set_num_threads(threads)


def run_path(out: Path | None, *parts: str) -> Path:
    """``--out``, or runs/... below the working folder."""
    return out or Path("runs").joinpath(*parts)


def split_known(kind: type[T], recipe: Recipe, arguments: Sequence[str], prog: str) -> tuple[T, Recipe]:
    """Options of ``kind``, and what is left of ``arguments`` as fields of the recipe."""
    options, rest = tyro.cli(kind, args=list(arguments), prog=f"immiscible {prog}", return_unknown_args=True)
    check_fields(options)
    return options, parse(RecipeOptions, rest, prog, RecipeOptions.of(recipe)).recipe()
