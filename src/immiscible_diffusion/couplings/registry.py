"""Couplings by name, as the command line spells them."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch

from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.base import Coupling, Independent, Shuffled
from immiscible_diffusion.couplings.calibrated import Calibrated
from immiscible_diffusion.couplings.gaussian_ot import GaussianTransport
from immiscible_diffusion.couplings.knn import CENTERS, KNN
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.schedule import WarmUp

MomentsSource = Moments | Callable[[], Moments] | None
LawSource = NoiseDistribution | Callable[[Coupling], NoiseDistribution] | None

COUPLINGS: dict[str, type] = {
    "independent": Independent,
    "knn": KNN,
    "assignment": LinearAssignment,
    "transport": GaussianTransport,
}
_SHUFFLED, _CALIBRATED = "shuffled:", "calibrated:"
_IMPORT = re.compile(r"(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)(?:\((?P<args>.*)\))?")


def parse_coupling(name: str, moments: MomentsSource = None, law: LawSource = None) -> Coupling:
    """The coupling that ``name`` spells.

    Args:
        name: ``"independent"``, ``"knn:k=16"``, ``"knn:k=16,center=mean"`` (or ``label``,
            ``channel``), ``"assignment"``, ``"assignment:cost=norm"`` (and the other options of
            ``LinearAssignment``), any of these with ``start_step=N`` (no pairing before that
            training step), ``"transport:eps=4"``, ``"shuffled:"`` or ``"calibrated:"``
            before any of these, or a coupling of your own by import path,
            ``"my_module:MyCoupling(k=3)"``.
        moments: moments of the data for ``center=`` and ``transport``, or a function that fits
            them, called only if they are needed.
        law: the law of the noise for ``calibrated:``, or a function of the inner coupling that
            measures it.

    Raises:
        ValueError: unknown name or option, a bad value, or moments or a law needed and not given.
    """
    name = name.strip()
    if name.startswith(_SHUFFLED):
        return Shuffled(parse_coupling(name.removeprefix(_SHUFFLED), moments, law))
    if name.startswith(_CALIBRATED):
        inner = parse_coupling(name.removeprefix(_CALIBRATED), moments, law)
        return Calibrated(inner, _law(name, inner, law))
    head, _, options = name.partition(":")
    if head in COUPLINGS:
        parsed = _parse_options(name, head, options, moments)
        start = parsed.pop("start_step", None)
        coupling = _make(COUPLINGS[head], parsed, name)
        return coupling if start is None else WarmUp(coupling, start)
    if match := _IMPORT.fullmatch(name):
        return _import_coupling(name, match)
    raise ValueError(
        f"unknown coupling '{name}'; known: independent, knn:k=K[,center=mean|label|channel], "
        f"assignment[:cost=inner|norm|l1], transport[:eps=E], shuffled:<any of these>, "
        f"calibrated:<any of these>, or your own as my_module:MyCoupling(option=value)"
    )


def check_coupling_name(name: str) -> None:
    """Raise ValueError if ``name`` spells no coupling, before there are data to fit moments to."""
    spelled(name)


def spelled(name: str) -> Coupling:
    """The coupling that ``name`` spells, with moments and a law of no data in particular."""
    data = torch.randn(66, 64, generator=torch.Generator().manual_seed(0))
    moments = Moments.fit([(data, torch.arange(66) % 2)])  # as many directions as of any data
    return parse_coupling(name, moments, lambda _: NoiseDistribution.standard(moments))


def _parse_options(name: str, head: str, options: str, moments: MomentsSource) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for item in filter(None, options.split(",")):
        key, equals, text = item.partition("=")
        if not equals or not text:
            raise ValueError(f"coupling '{name}': '{item}' is not of the form option=value")
        if key.strip() in parsed:
            raise ValueError(f"coupling '{name}': option '{key.strip()}' is given twice")
        parsed[key.strip()] = _literal(text.strip())
    if head == "transport":
        parsed["moments"] = _moments(name, moments)
    if "center" in parsed and parsed["center"] is not None:
        parsed |= _center(name, parsed["center"], moments)
    return parsed


def _literal(text: str) -> Any:
    text = {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _center(name: str, value: Any, moments: MomentsSource) -> dict[str, Any]:
    if value not in CENTERS:
        known = ", ".join(CENTERS)
        raise ValueError(f"coupling '{name}': center={value} is unknown; use one of {known}")
    found = _moments(name, moments)
    return {"center": found} if value == "mean" else {"center": value, "moments": found}


def _moments(name: str, moments: MomentsSource) -> Moments:
    if moments is None:
        raise ValueError(
            f"coupling '{name}' needs the moments of the data: "
            f"parse_coupling('{name}', Moments.fit(data))"
        )
    return moments() if callable(moments) else moments


def _law(name: str, inner: Coupling, law: LawSource) -> NoiseDistribution:
    if law is None:
        raise ValueError(
            f"coupling '{name}' needs the law of the noise: parse_coupling('{name}', moments, "
            f"NoiseDistribution.measure(coupling, batches, moments))"
        )
    return law if isinstance(law, NoiseDistribution) else law(inner)


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
    try:
        inspect.signature(coupling).bind(None, cond=None, generator=None)
    except TypeError as error:
        raise ValueError(
            f"coupling '{name}' cannot be called as coupling(data, cond=cond, "
            f"generator=generator): {error}"
        ) from error
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
