"""The conformance test of a coupling, for those who write their own.

Nothing is needed but torch; call it from any test framework::

    from immiscible_diffusion.couplings.testing import check_coupling

    def test_my_coupling():
        check_coupling(MyCoupling(k=3))
"""

import copy
import inspect
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.couplings.base import Coupling, as_coupling

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Conditions = Callable[[int], dict[str, Tensor]]


class CouplingError(AssertionError):
    """A coupling breaks a promise that trainers rely on."""


def check_coupling(
    coupling: Coupling | Callable[..., Tensor],
    *,
    shape: tuple[int, ...] = (3, 4, 4),
    conditions: Conditions | None = None,
) -> None:
    """Check that ``coupling`` keeps what every coupling promises.

    Small batches on the CPU, a second or less: shape, dtype and device of the noise; no gradient; randomness from the
    generator alone; data and conditions left as they were; views; a sane length of the noise; no state; use inside
    autocast; a mask refused or respected.

    Args:
        coupling: the coupling, ready to be called.
        shape: shape of one sample, if the coupling takes this one only (it is fitted, say); data of one to four
            dimensions are tried as well if ``shape`` is left as it is.
        conditions: ``count -> cond``, the conditions of ``count`` data, if the coupling needs some (default:
            ``{"label": [count] int64}``).

    Raises:
        CouplingError: what was expected, what came, what to do.
    """
    conditions = conditions or (lambda count: {"label": torch.arange(count)})
    try:
        inspect.signature(coupling).bind(None, cond=None, generator=None)
    except TypeError as error:
        raise CouplingError(
            f"expected a call coupling(data, *, cond=None, generator=None), got {coupling!r}: "
            f"{error}; take these arguments, also those you do not use"
        ) from error
    shapes = [(4,), (3, 4), (3, 4, 4), (2, 3, 4, 4)] if shape == (3, 4, 4) else [shape]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a batch of one may warn
        for count, size in itertools.product((1, 5), shapes):
            data = 0.5 * torch.randn(count, *size, generator=_generator(count))
            _Check(coupling, data, conditions(count)).form()
        data = 0.5 * torch.randn(5, *shape, generator=_generator(5))
        for dtype in DTYPES:
            _Check(coupling, data.to(dtype), conditions(5)).form()
        check = _Check(coupling, data, conditions(5))
        promises = (check.randomness, check.mask, check.inputs, check.views, check.length, check.state, check.autocast)
        for promise in promises:
            promise()


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _require(kept: bool, expected: str, got: object, advice: str) -> None:
    if not kept:
        raise CouplingError(f"expected {expected}, got {got}; {advice}")


@dataclass(frozen=True, eq=False)
class _Check:
    """The promises of a coupling on one batch."""

    coupling: Callable[..., Tensor]
    data: Tensor
    cond: dict[str, Tensor]

    def draw(self, data: Tensor, seed: int = 0) -> Tensor:
        return self.coupling(data, cond=self.cond, generator=_generator(seed))

    def form(self) -> None:
        """Shape, dtype, device, gradient, memory of its own."""
        data = self.data.clone().requires_grad_()
        where = f"for data {tuple(data.shape)} {data.dtype}"
        for cond in (self.cond, None) if set(self.cond) == {"label"} else (self.cond,):
            noise = self.coupling(data, cond=cond, generator=_generator())
            _require(isinstance(noise, Tensor), f"a tensor {where}", type(noise), "return noise alone")
            expected, got = ((tuple(x.shape), x.dtype, x.device) for x in (data, noise))
            _require(got == expected, f"noise {expected}", got, "make the noise like the data")
            _require(not noise.requires_grad, "no gradient", "noise that requires grad", "use @torch.no_grad()")
            finite = bool(noise.isfinite().all())
            _require(finite, f"finite noise {where}", "nan or inf", "compute in float32")
            own = noise.untyped_storage().data_ptr() != data.untyped_storage().data_ptr()
            _require(own, "memory of its own", "memory of the data", "return a new tensor")

    def randomness(self) -> None:
        """The generator is the only source of randomness, and it is used."""
        state, advice = torch.get_rng_state(), "draw everything with generator=generator"
        first, again, other = (self.draw(self.data, seed) for seed in (0, 0, 1))
        untouched = torch.equal(state, torch.get_rng_state())
        _require(untouched, "torch's global generator untouched", "a change of its state", advice)
        _require(torch.equal(first, again), "the same noise from the same seed", "two noises", advice)
        _require(not torch.equal(first, other), "other noise from another seed", "the same", advice)
        for generator, where in ((_generator(), ""), (None, " without generator")):
            draws = [self.coupling(self.data, cond=self.cond, generator=generator) for _ in range(2)]
            _require(not torch.equal(*draws), f"new noise at every call{where}", "the same twice", advice)
        torch.set_rng_state(state)  # a test leaves no trace

    def mask(self) -> None:
        """A mask is refused or respected: data that are not valid are not read."""
        mask = torch.ones(self.data.shape, dtype=torch.bool)
        mask[:, ..., -1] = self.data.shape[-1] == 1
        one, other = (self.data.masked_fill(~mask, fill) for fill in (0.0, float("nan")))
        try:
            coupling = as_coupling(self.coupling)
            one = coupling(one, cond=self.cond, mask=mask, generator=_generator())
            other = coupling(other, cond=self.cond, mask=mask, generator=_generator())
        except ValueError:
            return  # refused
        kept = torch.equal(one, other) and bool(one.isfinite().all())
        expected = "finite noise that does not depend on data where the mask is False"
        _require(kept, expected, "noise that does", "or raise ValueError for a mask")

    def inputs(self) -> None:
        """Data and conditions stay as they are, in order, bit for bit."""
        data, cond = self.data.clone(), {name: row.clone() for name, row in self.cond.items()}
        advice = "never move or write the inputs: choose the noise, and return it"
        rows = dict(self.cond)
        self.coupling(self.data, cond=rows, generator=_generator())
        _require(torch.equal(self.data, data), "data untouched", "data changed in place", advice)
        same = all(rows.get(name) is row for name, row in self.cond.items()) and _same(rows, cond)
        _require(same, "cond untouched, in order", "cond changed in place", advice)

    def views(self) -> None:
        """Memory layout is not part of the value, but of noise that does not depend on the data (``randn_like``)."""
        noise, data = self.draw(self.data), self.data
        sparse = torch.stack([data, data], dim=-1)[..., 0]
        turned = data.flip(-1).transpose(0, -1).contiguous().transpose(0, -1).flip(-1)
        for view in (sparse, turned):
            error = float((self.draw(view) - noise).abs().max())
            kept = error < 1e-4 or torch.equal(self.draw(view), self.draw(-view))
            advice = "use flatten or reshape, not view or strides"
            _require(kept, "the same noise for a view of the data", error, advice)

    def length(self) -> None:
        """Noise, not something else: about one in the mean square, whatever is selected."""
        square = float(torch.stack([self.draw(self.data, s) for s in range(20)]).square().mean())
        expected = "noise of about unit variance, of a mean square within 0.2 and 5"
        _require(0.2 <= square <= 5, expected, square, "return the noise itself, not scaled")

    def state(self) -> None:
        """No state: what a call depends on is in its arguments."""
        before = copy.deepcopy(getattr(self.coupling, "__dict__", {}))
        first = self.draw(self.data)
        self.draw(self.data.flip(0), seed=1)
        advice = "make it a frozen dataclass; fit what it must know before the first step"
        same = _same(before, getattr(self.coupling, "__dict__", {}))
        _require(same, "no change of attributes in a call", "a change", advice)
        same = torch.equal(first, self.draw(self.data))
        _require(same, "noise that no earlier call changes", "another noise", advice)

    def autocast(self) -> None:
        """Trainers call couplings inside mixed precision."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            noise = self.draw(self.data)
        fits = noise.dtype == self.data.dtype and bool(noise.isfinite().all())
        expected = f"finite noise of {self.data.dtype} inside autocast"
        _require(fits, expected, noise.dtype, "compute outside autocast, or with out=")


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
