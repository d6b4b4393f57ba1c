"""What a coupling is, the trivial ones, and couplings by name."""

import ast
import importlib
import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from immiscible_diffusion.coupling.assignment import LinearAssignment
from immiscible_diffusion.coupling.knn import KNN, check_data
from immiscible_diffusion.moments import Moments


@runtime_checkable
class Coupling(Protocol):
    """Decides which noise goes with which datum: ``noise = coupling(data)``.

    A coupling is stateless (a frozen dataclass): what it needs to know of the data set it is given
    when it is made. It draws noise; it never moves, drops or repeats data, so labels and other
    conditions stay with their data. ``immiscible_diffusion.testing.check_coupling`` tests one.
    """

    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``: same shape, dtype and device, without gradient.

        ``cond`` holds the conditions of the data, row by row; ``generator`` is on their device.
        """


@dataclass(frozen=True)
class Independent:
    """No pairing: ``torch.randn``, as diffusion models are commonly trained."""

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise like ``data`` ``[B, *shape]``."""
        check_data(data)
        return torch.randn(data.shape, dtype=data.dtype, device=data.device, generator=generator)


@dataclass(frozen=True)
class Shuffled:
    """The control: the very noises of ``coupling``, handed to other data of the batch.

    The law of the noise is kept and the pairing destroyed, so what a shuffled coupling gains over
    ``Independent`` is not due to pairing. The permutation is one random cycle: no datum keeps its
    noise (unless it is alone in its batch, which warns).
    """

    coupling: Coupling

    def __post_init__(self) -> None:
        if not callable(self.coupling):
            raise ValueError(f"Shuffled needs a coupling, such as KNN(4), got {self.coupling!r}")

    @torch.no_grad()
    def __call__(
        self,
        data: Tensor,
        *,
        cond: dict[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Noise for ``data`` ``[B, *shape]``, independent of the datum it is given to."""
        noise = self.coupling(data, cond=cond, generator=generator)
        if len(noise) == 1:
            warnings.warn("Shuffled has nothing to shuffle in a batch of one datum", stacklevel=2)
        cycle = torch.randperm(len(noise), device=noise.device, generator=generator)
        shuffled = torch.empty_like(noise)
        shuffled[cycle] = noise[cycle.roll(1)]
        return shuffled


MomentsSource = Moments | Callable[[], Moments] | None

COUPLINGS: dict[str, type] = {
    "independent": Independent,
    "knn": KNN,
    "assignment": LinearAssignment,
}
_SHUFFLED = "shuffled:"
_IMPORT = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?:\((?P<args>.*)\))?")


def coupling_from_name(name: str, moments: MomentsSource = None) -> Coupling:
    """The coupling that ``name`` spells.

    Args:
        name: ``"independent"``, ``"knn:k=16"``, ``"knn:k=16,center=mean"``, ``"assignment"``,
            ``"assignment:cost=norm"``, ``"shuffled:"`` before any of these, or a coupling of your
            own by import path, ``"my_module:MyCoupling(k=3)"``.
        moments: moments of the data for ``center=mean``, or a function that fits them, called
            only if they are needed.

    Raises:
        ValueError: unknown name or option, a bad value, or moments needed and not given.
    """
    name = name.strip()
    if name.startswith(_SHUFFLED):
        return Shuffled(coupling_from_name(name.removeprefix(_SHUFFLED), moments))
    head, _, options = name.partition(":")
    if head in COUPLINGS:
        return _make(COUPLINGS[head], _parse_options(name, options, moments), name)
    if match := _IMPORT.fullmatch(name):
        return _import_coupling(name, match)
    raise ValueError(
        f"unknown coupling '{name}'; known: independent, knn:k=K[,center=mean], "
        f"assignment[:cost=inner|norm], shuffled:<any of these>, or your own as "
        f"my_module:MyCoupling(option=value)"
    )


def check_coupling_name(name: str) -> None:
    """Raise ValueError if ``name`` spells no coupling, before there are data to fit moments to."""
    coupling_from_name(name, Moments(torch.zeros(1), 1.0, 1))


def _parse_options(name: str, options: str, moments: MomentsSource) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for item in filter(None, options.split(",")):
        key, equals, text = item.partition("=")
        if not equals or not text:
            raise ValueError(f"coupling '{name}': '{item}' is not of the form option=value")
        if key.strip() in parsed:
            raise ValueError(f"coupling '{name}': option '{key.strip()}' is given twice")
        parsed[key.strip()] = _literal(text.strip())
    if "center" in parsed:
        parsed["center"] = _center(name, parsed["center"], moments)
    return parsed


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _center(name: str, value: Any, moments: MomentsSource) -> Moments | None:
    if value in (None, "none"):
        return None
    if value != "mean":
        raise ValueError(f"coupling '{name}': center={value} is unknown; use center=mean")
    if moments is None:
        raise ValueError(
            f"coupling '{name}' needs the moments of the data: "
            f"coupling_from_name('{name}', Moments.fit(data))"
        )
    return moments() if callable(moments) else moments


def _make(kind: Callable[..., Any], options: dict[str, Any], name: str) -> Coupling:
    if inspect.isfunction(kind) and "data" in inspect.signature(kind).parameters:
        raise ValueError(
            f"coupling '{name}' names a function of data; name a class whose objects are called "
            f"with data, or a function that returns such an object"
        )
    try:
        coupling = kind(**options)
    except TypeError as error:
        fields = ", ".join(getattr(kind, "__dataclass_fields__", {})) or "none"
        raise ValueError(f"coupling '{name}': {error}; options: {fields}") from error
    if not callable(coupling):
        raise ValueError(f"coupling '{name}' made {coupling!r}, which cannot be called with data")
    return coupling


def _import_coupling(name: str, match: re.Match[str]) -> Coupling:
    module, attribute, arguments = match["module"], match["name"], match["args"]
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"coupling '{name}' cannot be imported: {error}") from error
    try:
        call = ast.parse(f"f({arguments or ''})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("use one pair of brackets")
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("use option=value only")
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"coupling '{name}': cannot read '({arguments})': {error}") from error
    return _make(kind, options, name)
