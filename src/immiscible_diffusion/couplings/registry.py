"""Couplings by name, as the command line spells them; ``str(coupling)`` gives the name back."""

import ast
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.couplings.aligned import Aligned
from immiscible_diffusion.couplings.assignment import LinearAssignment
from immiscible_diffusion.couplings.base import Coupling, Independent, as_coupling
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.couplings.knn import CENTERS, KNN
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.noise_distribution import NoiseDistribution
from immiscible_diffusion.couplings.projected import Projected
from immiscible_diffusion.couplings.quantile import Quantile
from immiscible_diffusion.couplings.semidiscrete import Semidiscrete
from immiscible_diffusion.couplings.semidiscrete_fit import check_max_steps
from immiscible_diffusion.couplings.semidiscrete_plan import UNFITTED, SemidiscretePlan, plan_of
from immiscible_diffusion.couplings.wrappers import Calibrated, MaskedCoupling, Shuffled, WarmUp, Wrapper
from immiscible_diffusion.utils.checks import did_you_mean

MomentsSource = Moments | Callable[[], Moments] | None
DistributionSource = NoiseDistribution | Callable[[Coupling], NoiseDistribution] | None
PlanSource = SemidiscretePlan | Callable[..., SemidiscretePlan] | None

KINDS = (Independent, KNN, LinearAssignment, GaussianOT, Semidiscrete, Quantile)
COUPLINGS: dict[str, type[Coupling]] = {kind.name: kind for kind in KINDS}
WRAPPERS: dict[str, type[Wrapper]] = {
    kind.name: kind for kind in (Shuffled, Calibrated, WarmUp, MaskedCoupling, Aligned, Projected)
}
_AROUND = re.compile(r"(?P<kind>\w+)(?:\((?P<options>.*?)\))?:(?P<inner>.*)")
NOT_OPTIONS = ("plan", "moments", "distribution", "coupling", "number")  # of names: what is fitted, and the step's
BY_NAME_ONLY: dict[Any, tuple[str, ...]] = {
    Semidiscrete: ("rank", "max_steps", "refresh_epochs"),
    Quantile: ("max_steps",),
}
LONGEST_REFRESH = 10**6  # epochs
LONGEST = 1000  # characters of a name: wrappers nest, and files may say anything
UNREADABLE = (ValueError, SyntaxError, MemoryError, RecursionError)  # what ast raises
_IMPORT = re.compile(r"(?P<path>(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*))(?:\((?P<args>.*)\))?")


def parse_coupling(
    name: str,
    moments: MomentsSource = None,
    distribution: DistributionSource = None,
    plan: PlanSource = None,
    *,
    seed: int = 0,
    epoch: float | None = None,
    allow_import: bool | str = False,
) -> Coupling:
    """The coupling that ``name`` spells.

    Args:
        name: ``"independent"``, ``"knn:k=16"``, ``"knn:k=16,center=mean"`` (or ``label``, ``channel``),
            ``"assignment"``, ``"assignment:cost=norm"`` (and the other options of ``LinearAssignment``),
            ``"gaussian_ot:eps=4"``, ``"semidiscrete"``, ``"semidiscrete:cond_key=label,rank=32"`` (and ``max_steps=``
            of the fit, ``refresh_epochs=`` instead of ``refresh=``), ``"quantile"``, ``"quantile:rank=4,share=0.5"``,
            any of these with ``start_step=N`` (no pairing before that training step),
            ``"shuffled:"``, ``"calibrated:"``, ``"masked:"`` (paired inside ``cond["inpaint_mask"]``),
            ``"warmup(start_step=N):"``, ``"aligned(beta=5):"``, ``"projected(pool=4):"`` or ``"projected(rank=32):"``
            before any of these, or with ``allow_import`` a coupling of your own by import path: a subclass of
            ``Coupling``, ``"my_module:MyCoupling(k=3)"``, or a function, ``"my_module:function"``.
        moments: moments of the data for ``center=`` and ``gaussian_ot``, or a function that fits them, called only if
            they are needed. Inside ``projected`` no function is called, as the coupling there pairs parts of the data:
            give moments, distribution or plan of these.
        distribution: the noise distribution for ``calibrated:``, or a function of the inner coupling that measures it.
        plan: of the data set for ``semidiscrete`` and ``quantile``, or a function of "within each label?" that fits
            it, with ``rank`` and ``max_steps`` of ``SemidiscretePlan.fit`` as options.
        seed: of the tables of ``semidiscrete``, unless its name has one.
        epoch: the steps of one, for ``refresh_epochs=``.
        allow_import: what may be imported: ``"my_module:MyCoupling"`` (brackets and wrappers do not count), or True
            for whatever the name spells. True is only for names that the user typed: one that comes with a run folder
            or another file is somebody else's code.

    Raises:
        ValueError: unknown name or option, a bad value, an import that is not allowed, or moments or a distribution
            needed and not given.
    """
    name = name.strip()
    if len(name) > LONGEST:
        raise ValueError(f"a coupling's name has at most {LONGEST} characters, got {len(name):,}: {name[:40]}...")
    if (around := _AROUND.fullmatch(name)) and around["kind"] in WRAPPERS:
        given = (moments, distribution, plan)
        if around["kind"] == Projected.name:
            alone = "leave out center" if "center=" in around["inner"] else "use it with rank=R, without projected"
            instead = (alone, "put calibrated: in front of projected", alone)
            given = tuple(_no_fit(name, *fit) for fit in zip(given, instead, strict=True))
        inner = parse_coupling(around["inner"], *given, seed=seed, epoch=epoch, allow_import=allow_import)
        return _around(name, around, inner, moments, distribution)
    head, _, rest = name.partition(":")
    if head == "matched":
        raise ValueError(
            f"'{name}' is no coupling of training: train with '{rest}', and sample with init_noise matched; where a "
            f"command takes it, matched: comes first"
        )
    if head in COUPLINGS:
        return _coupling(name, moments, plan, seed, epoch)
    if match := _IMPORT.fullmatch(name):
        if allow_import is not True and not (allow_import and _import_path(allow_import) == match["path"]):
            raise ValueError(
                f"coupling '{name}' is code to import, which no run folder or file may name by itself; if you trust "
                f"it, give --allow-code {match['path']} on the command line, allow_import='{match['path']}' in Python"
            )
        return _import_coupling(name, match)
    if name.partition("(")[0] in WRAPPERS:
        raise ValueError(f"'{name}' is around another coupling: write {name}:assignment, say")
    hint = did_you_mean(re.split(r"\W", name.lower(), maxsplit=1)[0], [*COUPLINGS, *WRAPPERS])
    raise ValueError(
        f"unknown coupling '{name}'; known: independent, knn:k=K[,center=mean|label|channel], assignment"
        f"[:cost=inner|norm|l1,solver=greedy], gaussian_ot[:eps=E], semidiscrete[:cond_key=label,max_steps=0,sweeps=8]"
        f", quantile[:rank=R], shuffled:<any>, calibrated:<any>, aligned(beta=5):<any>, projected(pool=4):<any>, or "
        f"module:Name(k=3){hint}"
    )


def parse_without_data(name: str, *, allow_import: bool | str = False) -> Coupling:
    """The coupling that ``name`` spells, with moments and noise distribution of random data; ValueError for none."""
    data = torch.randn(66, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(66) % 2
    moments = Moments.fit([(data, labels)])  # as many directions as of any data
    standard = NoiseDistribution.standard(moments)

    def plan(within: bool, **options: Any) -> SemidiscretePlan:
        return plan_of(data, labels, moments, within, **(options | UNFITTED))

    given = (lambda: moments, lambda _: standard, plan)  # functions, as training gives them
    return parse_coupling(name, *given, epoch=1, allow_import=allow_import)


def check_coupling_name(name: str, *, allow_import: bool | str = False) -> None:
    """Raise ValueError if ``name`` spells no coupling, before there are data to fit moments to."""
    parse_without_data(name, allow_import=allow_import)


def _import_path(name: str) -> str | None:
    """``"module:Name"`` of a name that spells code to import, whatever is around it; None of other names."""
    while (around := _AROUND.fullmatch(name)) and around["kind"] in WRAPPERS:
        name = around["inner"]
    match = _IMPORT.fullmatch(name.strip())
    return match and match["path"]


def _parse_options(name: str, text: str) -> dict[str, Any]:
    """``"k=4,center=mean"`` as a dictionary."""
    options: dict[str, Any] = {}
    for item in re.findall(r"""(?:'[^']*'|"[^"]*"|[^,])+""", text):  # a comma in quotes is no end
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise ValueError(f"coupling '{name}': '{item}' is not of the form option=value")
        if key in NOT_OPTIONS:
            raise ValueError(f"coupling '{name}': '{key}' is not given by name")
        if key in options:
            raise ValueError(f"coupling '{name}': option '{key}' is given twice")
        value = {"true": "True", "false": "False", "none": "None"}.get(value.lower(), value)
        try:
            options[key] = ast.literal_eval(value)
        except UNREADABLE:
            options[key] = value
    return options


def _no_fit(name: str, source: Any, instead: str) -> Any:
    """``source``; for a function, which fits to complete data, one that refuses to: ``projected`` pairs parts."""
    if not callable(source):
        return source

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(
            f"coupling '{name}': inside 'projected' nothing is fitted by name, as that would be to complete data; "
            f"{instead}"
        )

    return refuse


def _around(
    name: str, around: re.Match[str], inner: Coupling, moments: MomentsSource, distribution: DistributionSource
) -> Coupling:
    """The wrapper that ``name`` spells, of the coupling ``inner``."""
    options = _parse_options(name, around["options"] or "") | {"coupling": inner}
    if around["kind"] == Calibrated.name:
        if distribution is None:
            raise ValueError(f"coupling '{name}' needs distribution=NoiseDistribution.measure(...)")
        measured = isinstance(distribution, NoiseDistribution)
        options["distribution"] = distribution if measured else distribution(inner)  # type: ignore
    if "rank" in options:
        options["moments"] = _fitted(name, moments)
    return _make(name, WRAPPERS[around["kind"]], options)


def _coupling(name: str, moments: MomentsSource, plan: PlanSource, seed: int, epoch: float | None) -> Coupling:
    """The coupling of ``COUPLINGS`` that ``name`` spells."""
    head, _, text = name.partition(":")
    options = ({"seed": seed} if head == Semidiscrete.name else {}) | _parse_options(name, text)
    start, center = options.pop("start_step", None), options.get("center")
    if center is not None and center not in CENTERS:
        raise ValueError(f"coupling '{name}': center={center} is unknown; use one of {', '.join(CENTERS)}")
    if center is not None or head == GaussianOT.name:
        options["center" if center == "mean" else "moments"] = _fitted(name, moments)
    if head == Semidiscrete.name and (epochs := options.pop("refresh_epochs", None)) is not None:
        if "refresh" in options:
            raise ValueError(f"coupling '{name}': give refresh (steps) or refresh_epochs, not both")
        if type(epochs) not in (int, float) or not 0 < epochs <= LONGEST_REFRESH:
            raise ValueError(f"coupling '{name}': refresh_epochs must be above 0 and at most {LONGEST_REFRESH:,}")
        if epoch is None:
            raise ValueError(f"coupling '{name}': refresh_epochs needs the steps of an epoch: parse_coupling(epoch=)")
        options["refresh"] = max(1, math.ceil(round(epochs * epoch, 6)))  # 2.2 * 3125 is 6875 and a rounding error
    if head in (Semidiscrete.name, Quantile.name):
        asked = {key: options.pop(key) for key in set(options) & {"rank", "max_steps"}}
        if head == Quantile.name:
            asked = {"rank": 1, "max_steps": 0} | asked
            options["rank"] = asked["rank"]
        check_max_steps(asked.get("max_steps", 0))  # here, as stand-ins for a plan are not fitted
        options["plan"] = _plan_for(name, options.get("cond_key") is not None, asked, plan)
    coupling = _make(name, COUPLINGS[head], options)
    return coupling if start is None else WarmUp(coupling, start)


def _plan_for(name: str, within: bool, options: dict[str, Any], plan: PlanSource) -> SemidiscretePlan:
    if plan is None:
        raise ValueError(f"coupling '{name}' needs the plan of the data set: SemidiscretePlan.fit(data, moments)")
    plan = plan if isinstance(plan, SemidiscretePlan) else plan(within, **options)
    if options.get("rank") not in (None, known := len(plan.directions)):
        raise ValueError(f"coupling '{name}': the plan was fitted with rank {known}")
    return plan


def _fitted(name: str, moments: MomentsSource) -> Moments:
    if moments is None:
        raise ValueError(f"coupling '{name}' needs the moments of the data: Moments.fit(data)")
    return moments() if callable(moments) else moments


def _make(name: str, kind: Callable[..., Coupling], options: dict[str, Any]) -> Coupling:
    try:
        return kind(**options)
    except TypeError as error:
        names = [key for key in inspect.signature(kind).parameters if key not in NOT_OPTIONS]
        names += BY_NAME_ONLY.get(kind, ())
        known = ", ".join(names) or "none"
        cause = str(error).rpartition("() ")[2]  # without the name of the constructor
        raise ValueError(f"coupling '{name}': {cause}; options: {known}") from error


def _import_coupling(name: str, match: re.Match[str]) -> Coupling:
    """What the module calls so, if it is a class of couplings, or a function that is one.

    Nothing else is called: a name like ``os:system(command='...')`` is an error.
    """
    try:
        call = ast.parse(f"f({match['args'] or ''})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("use one pair of brackets")
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("use option=value only")
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except UNREADABLE as error:
        raise ValueError(f"coupling '{name}': cannot read '({match['args']})': {error}") from error
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, and only for code that was asked for: files of a folder replace no package
    try:
        target = getattr(importlib.import_module(match["module"]), match["name"])
    except (ImportError, AttributeError) as error:
        hint = did_you_mean(match["module"], WRAPPERS)
        raise ValueError(f"coupling '{name}' cannot be imported: {error}{hint}") from error
    if inspect.isclass(target) and issubclass(target, Coupling) and target is not Coupling:
        return _make(name, target, options)
    if not inspect.isfunction(target) or match["args"] is not None:
        raise ValueError(
            f"coupling '{name}' is no coupling: expected a subclass of immiscible_diffusion.Coupling, or a function "
            f"named without brackets, got {target!r}"
        )
    try:
        return as_coupling(target)
    except ValueError as error:
        raise ValueError(f"coupling '{name}' is no coupling: {error}") from error
