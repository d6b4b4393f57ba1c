"""The conformance test of a coupling, for those who write their own.

Nothing is needed but torch; call it from any test framework::

    from immiscible_diffusion.couplings.testing import check_coupling

    def test_my_coupling():
        check_coupling(MyCoupling(k=3))
"""

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling, as_coupling

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Conditions = Callable[[int], dict[str, Tensor]]


class CouplingError(AssertionError):
    """A coupling breaks a promise that trainers rely on."""


def check_coupling(
    coupling: Coupling,
    *,
    shape: tuple[int, ...] = (3, 4, 4),
    conditions: Conditions | None = None,
) -> None:
    """Check that ``coupling`` keeps what every coupling promises.

    Small batches on the CPU, a second or less: shape, dtype and device of the noise; no gradient;
    randomness from the generator alone; data and conditions left as they were; views; a sane
    length of the noise; no state; use inside autocast; a mask refused or respected.

    Args:
        coupling: the coupling, made and ready to be called.
        shape: of one sample, if the coupling takes this one only (it is fitted, say); data of one
            to four dimensions are tried as well if ``shape`` is left as it is.
        conditions: ``count -> cond``, the conditions of ``count`` data, if the coupling needs some
            (default: ``{"label": [count] int64}``).

    Raises:
        CouplingError: what was expected, what came, what to do.
    """
    conditions = conditions or _labels
    _check_signature(coupling)
    ranks = [(4,), (3, 4), (3, 4, 4), (2, 3, 4, 4)] if shape == (3, 4, 4) else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch of one may warn
        for size in [shape, *ranks]:
            for count in (1, 5):
                _check_form(coupling, _data(count, size), conditions(count))
        for dtype in DTYPES:
            _check_form(coupling, _data(5, shape).to(dtype), conditions(5))
        data, cond = _data(5, shape), conditions(5)
        for check in CHECKS:
            check(coupling, data, cond)


def _check_signature(coupling: Coupling) -> None:
    """``coupling(data, *, cond=None, generator=None)``."""
    try:
        inspect.signature(coupling).bind(None, cond=None, generator=None)
    except TypeError as error:
        raise CouplingError(
            f"expected a call coupling(data, *, cond=None, generator=None), got {coupling!r}: "
            f"{error}; take these arguments, also those you do not use"
        ) from error


def _labels(count: int) -> dict[str, Tensor]:
    return {"label": torch.arange(count)}


def _data(count: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return 0.5 * torch.randn(count, *shape, generator=generator)


def _draw(coupling: Coupling, data: Tensor, cond: dict[str, Tensor], seed: int = 0) -> Tensor:
    return coupling(data, cond=cond, generator=torch.Generator().manual_seed(seed))


def _require(kept: bool, expected: str, got: object, advice: str) -> None:
    if not kept:
        raise CouplingError(f"expected {expected}, got {got}; {advice}")


def _check_form(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """Shape, dtype, device, gradient, memory of its own."""
    data = data.clone().requires_grad_()
    for given in (cond, None) if set(cond) == {"label"} else (cond,):
        noise = coupling(data, cond=given, generator=torch.Generator().manual_seed(0))
        where = f"for data {tuple(data.shape)} {data.dtype}"
        _require(isinstance(noise, Tensor), f"a tensor {where}", type(noise), "return noise alone")
        want = (tuple(data.shape), data.dtype, data.device)
        got = (tuple(noise.shape), noise.dtype, noise.device)
        _require(got == want, f"noise {want}", got, "make the noise like the data, row by row")
        _require(
            not noise.requires_grad,
            f"no gradient {where}",
            "noise that requires grad",
            "decorate __call__ with @torch.no_grad()",
        )
        finite = bool(torch.isfinite(noise).all())
        _require(
            finite, f"finite noise {where}", "nan or inf", "compute in float32 (half overflows)"
        )
        shared = noise.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()
        _require(
            not shared, f"memory of its own {where}", "memory of the data", "return a new tensor"
        )


def _check_random(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """The generator is the only source of randomness, and it is used."""
    before = torch.get_rng_state()
    first, again, other = (_draw(coupling, data, cond, seed) for seed in (0, 0, 1))
    advice = "draw everything with generator=generator"
    _require(
        torch.equal(before, torch.get_rng_state()),
        "torch's global generator untouched when one is given",
        "a change of its state",
        advice,
    )
    _require(torch.equal(first, again), "the same noise from the same seed", "two noises", advice)
    _require(not torch.equal(first, other), "other noise from another seed", "the same", advice)
    generator = torch.Generator().manual_seed(0)
    one, two = (coupling(data, cond=cond, generator=generator) for _ in range(2))
    _require(not torch.equal(one, two), "new noise at every call", "the same twice", advice)
    state = torch.get_rng_state()
    free = [coupling(data, cond=cond) for _ in range(2)]
    torch.set_rng_state(state)  # a test leaves no trace
    _require(
        not torch.equal(*free),
        "new noise at every call without generator",
        "the same twice",
        advice,
    )


def _check_mask(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """A mask is refused or respected: data that are not valid are not read."""
    mask = torch.ones(data.shape, dtype=torch.bool)
    mask[:, ..., -1] = data.shape[-1] == 1
    try:
        masked, noises = as_coupling(coupling), []
        for filler in (0.0, float("nan")):
            generator = torch.Generator().manual_seed(0)
            filled = data.masked_fill(~mask, filler)
            noises.append(masked(filled, cond=cond, mask=mask, generator=generator))
    except ValueError:
        return  # refused
    _require(
        torch.equal(*noises) and bool(noises[0].isfinite().all()),
        "finite noise that does not depend on data where the mask is False",
        "noise that does",
        "select over valid positions, or raise ValueError for a mask",
    )


def _check_inputs(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """Data and conditions stay as they are, in order, bit for bit."""
    data_before, cond_before = data.clone(), {name: row.clone() for name, row in cond.items()}
    given = dict(cond)
    _draw(coupling, data, given)
    advice = "never move or write the inputs: choose the noise, and return it"
    _require(torch.equal(data, data_before), "data untouched", "data changed in place", advice)
    same = given.keys() == cond_before.keys() and all(
        given[name] is cond[name] and torch.equal(cond[name], row)
        for name, row in cond_before.items()
    )
    _require(same, "cond untouched, in the order of the data", "cond changed in place", advice)


def _check_views(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """Memory layout is not part of the value."""
    want = _draw(coupling, data, cond)
    sparse = torch.stack([data, data], dim=-1)[..., 0]
    turned = data.flip(-1).transpose(0, -1).contiguous().transpose(0, -1).flip(-1)
    for view in (sparse, turned):
        got = _draw(coupling, view, cond)
        _require(
            torch.allclose(got, want, atol=1e-4),
            "the same noise for a view of the same values",
            f"a difference of {float((got - want).abs().max()):g}",
            "use flatten or reshape, not view or strides",
        )


def _check_length(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """Noise, not something else: about one in the mean square, whatever the coupling selects."""
    noises = [_draw(coupling, data, cond, seed) for seed in range(20)]
    square = float(torch.stack(noises).square().mean())
    _require(
        0.2 <= square <= 5,
        "noise of about unit variance (mean square within 0.2 and 5)",
        f"mean square {square:g}",
        "return the noise itself, not scaled nor mixed with the data",
    )


def _check_frozen(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """No state: what a call depends on is in its arguments."""
    before = _state(coupling)
    first = _draw(coupling, data, cond)
    _draw(coupling, data.flip(0), cond, seed=1)
    advice = "make it a frozen dataclass; fit what it must know before the first step"
    _require(
        _same(before, _state(coupling)), "no change of attributes in a call", "a change", advice
    )
    _require(
        torch.equal(first, _draw(coupling, data, cond)),
        "noise that does not depend on earlier calls",
        "another noise after a call in between",
        advice,
    )


def _check_autocast(coupling: Coupling, data: Tensor, cond: dict[str, Tensor]) -> None:
    """Trainers call couplings inside mixed precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        noise = _draw(coupling, data, cond)
    _require(
        noise.dtype == data.dtype and bool(torch.isfinite(noise).all()),
        f"finite noise of {data.dtype} inside autocast",
        noise.dtype,
        "compute outside autocast, or with out=, and return the dtype of the data",
    )


CHECKS = (
    _check_random,
    _check_mask,
    _check_inputs,
    _check_views,
    _check_length,
    _check_frozen,
    _check_autocast,
)


def _state(coupling: Any) -> dict[str, Any]:
    return copy.deepcopy(getattr(coupling, "__dict__", {}))


def _same(a: Any, b: Any) -> bool:
    """Equality that looks into tensors, containers and plain objects."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[name]) for name, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if type(a) is type(b) and type(a).__eq__ is object.__eq__ and hasattr(a, "__dict__"):
        return _same(vars(a), vars(b))
    return bool(a == b)
