"""Command lines to dataclasses, by tyro; errors as ValueError, one line."""

import contextlib
import dataclasses
import io
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from immiscible_diffusion.diffusion.losses import ConsistencyLoss
from immiscible_diffusion.diffusion.paths import EDMPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.recipes import RECIPES, recipe_from_name
from immiscible_diffusion.training.recipe import Recipe

T = TypeVar("T")
Device = Literal["auto", "cpu", "cuda", "mps"]
WholeRecipe = Annotated[Recipe, tyro.conf.arg(name="")]
CONFIG = (tyro.conf.AvoidSubcommands,)
_BOX = re.compile(r"[╭╮╰╯│─]+")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def parse(kind: type[T], arguments: Sequence[str], prog: str, default: T | None = None) -> T:
    """``arguments`` as a ``kind``; ``--help`` prints and exits.

    Raises:
        ValueError: unknown options or bad values, in one line.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            words, name = list(arguments), f"immiscible {prog}"
            if default is None:
                return tyro.cli(kind, args=words, prog=name, config=CONFIG)
            return tyro.cli(kind, args=words, prog=name, default=default, config=CONFIG)
    except SystemExit as stop:
        if not stop.code:
            sys.stderr.write(said.getvalue())
            raise
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(text: str) -> str:
    text = " ".join(_BOX.sub(" ", _ANSI.sub("", text)).split())
    return text.removeprefix("Parsing error ").removeprefix("Unrecognized options ")


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
            f"immiscible {command} {next(iter(RECIPES))} --help lists the options.\n"
        )
        raise SystemExit(0)
    raise ValueError(f"which recipe? immiscible {command} RECIPE ...; known: {known}")


def named_recipe(name: str, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe, shrunk if ``--tiny`` is among the arguments, and the other arguments.

    ``--tiny`` acts before other options, which may then change what it set; ``--model.kind``,
    ``--path.kind`` and ``--loss.kind`` act before it.
    """
    recipe, arguments = with_kinds(recipe_from_name(name), arguments)
    if "--tiny" in arguments:
        # Under a name of its own, so that it leaves the folder of the real run alone.
        tiny = dataclasses.replace(recipe.tiny(), name=f"{recipe.name}-tiny")
        return tiny, [argument for argument in arguments if argument != "--tiny"]
    return recipe, arguments


def with_kinds(recipe: Recipe, arguments: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe with parts of other kinds, as ``--model.kind DiT`` asks, and the other arguments.

    A part of another kind has its defaults, and so has the sampler where path or loss need another;
    later options change them.
    """
    rest, chosen = list(arguments), {}
    for part in ("model", "path", "loss"):
        word = f"--{part}.kind"
        if word not in rest:
            continue
        place = rest.index(word)
        asked = rest[place + 1] if place + 1 < len(rest) else ""
        kinds = kinds_of(part)
        kind = {name.lower(): kind for name, kind in kinds.items()}.get(asked.lower())
        if kind is None:
            raise ValueError(f"{word} must be one of {', '.join(kinds)}, got {asked!r}")
        if not isinstance(getattr(recipe, part), kind):
            chosen[part] = kind()
        del rest[place : place + 2]
    path, loss = chosen.get("path", recipe.path), chosen.get("loss", recipe.loss)
    if "path" in chosen or "loss" in chosen:
        chosen["sampler"] = sampler_of(path, loss)
    return dataclasses.replace(recipe, **chosen), rest


def sampler_of(path: Any, loss: Any) -> SamplerConfig:
    """The usual sampler of a path, or of consistency models."""
    if isinstance(loss, ConsistencyLoss):
        return SamplerConfig("consistency", steps=1)
    if isinstance(path, VPPath):
        return SamplerConfig("ddim", steps=50)
    return SamplerConfig("edm", steps=18) if isinstance(path, EDMPath) else SamplerConfig()


def kinds_of(part: str) -> dict[str, type]:
    """The kinds that a part of a recipe may be of, by name."""
    kinds = typing.get_args(typing.get_type_hints(Recipe)[part])
    return {kind.__name__: kind for kind in kinds}


def run_path(out: Path | None, *parts: str) -> Path:
    """``--out``, or runs/... below the working folder."""
    return out or Path("runs").joinpath(*parts)


def split_known(kind: type[T], recipe: Recipe, arguments: list[str], prog: str) -> tuple[T, Recipe]:
    """Options of ``kind``, and what is left of ``arguments`` as fields of the recipe."""
    if "-h" in arguments or "--help" in arguments:
        parse(kind, ["--help"], prog)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options, rest = tyro.cli(
                kind, args=arguments, prog=f"immiscible {prog}", return_unknown_args=True
            )
    except SystemExit:
        raise ValueError(_one_line(said.getvalue())) from None
    return options, parse(Recipe, rest, prog, recipe)
