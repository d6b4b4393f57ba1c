import warnings
from dataclasses import dataclass, field

import pytest
import torch

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.couplings.testing import CouplingError, check_coupling

CENTER = Moments(torch.full((3, 4, 4), 0.3), 1.0, 10)


@pytest.mark.parametrize(
    "coupling",
    [
        Independent(),
        KNN(1),
        KNN(2),
        KNN(64),
        LinearAssignment(),
        LinearAssignment(cost="norm"),
        Shuffled(KNN(4)),
        Shuffled(LinearAssignment()),
    ],
    ids=repr,
)
def test_ours_pass(coupling):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # warnings of single rows stay inside the check
        assert check_coupling(coupling) is None


@pytest.mark.parametrize("shape", [(7,), (2, 5), (1, 2, 2, 3)])
def test_one_shape_alone(shape):
    check_coupling(KNN(4, center=Moments(torch.zeros(shape), 1.0, 10)), shape=shape)


def test_a_center_fits_one_shape_alone():
    with pytest.raises(ValueError, match="center was fitted"):
        check_coupling(KNN(4, center=CENTER))


def randn(data, generator):
    return torch.randn(data.shape, dtype=data.dtype, generator=generator)


@dataclass(frozen=True)
class NeedsText:
    def __call__(self, data, *, cond=None, generator=None):
        assert cond["text"].shape == (len(data), 2)
        return randn(data, generator)


def test_conditions_of_ones_own():
    check_coupling(NeedsText(), conditions=lambda count: {"text": torch.zeros(count, 2)})


def permutes_data(data, cond, generator):
    data.copy_(data.flip(0).clone())
    return randn(data, generator)


def edits_in_place(data, cond, generator):
    data -= 0.1
    return randn(data, generator)


def edits_cond(data, cond, generator):
    if cond:
        cond["label"][:] = cond["label"].flip(0).clone()
    return randn(data, generator)


def replaces_cond(data, cond, generator):
    if cond:
        cond["label"] = cond["label"].clone()
    return randn(data, generator)


def global_randomness(data, cond, generator):
    return torch.randn_like(data)


def partly_global_randomness(data, cond, generator):
    torch.rand(1)
    return randn(data, generator)


def sets_the_seed(data, cond, generator):
    return torch.randn(data.shape, generator=torch.Generator().manual_seed(0)).to(data.dtype)


def fixed_without_generator(data, cond, generator):
    return randn(data, generator or torch.Generator().manual_seed(0))


def wrong_dtype(data, cond, generator):
    return torch.randn(data.shape, generator=generator)


def wrong_shape(data, cond, generator):
    return randn(data, generator).flatten(1)


def a_tuple(data, cond, generator):
    return randn(data, generator), data


def keeps_gradient(data, cond, generator):
    with torch.enable_grad():
        return randn(data, generator) + 0.1 * data


def returns_data(data, cond, generator):
    return data


def not_finite(data, cond, generator):
    return randn(data, generator) + data.detach().square() * 1e5 * 1e3


def too_long(data, cond, generator):
    return 3 * randn(data, generator)


def too_short(data, cond, generator):
    return 0.3 * randn(data, generator)


def by_strides(data, cond, generator):
    memory = data.as_strided(data.shape, torch.empty(data.shape).stride())
    return randn(data, generator) + memory.detach()


PLANTED = {
    permutes_data: "data changed in place",
    edits_in_place: "data changed in place",
    edits_cond: "cond changed in place",
    replaces_cond: "cond changed in place",
    global_randomness: "global generator untouched",
    partly_global_randomness: "global generator untouched",
    sets_the_seed: "other noise from another seed",
    fixed_without_generator: "without generator",
    wrong_dtype: "expected noise .*float64",
    wrong_shape: "expected noise",
    a_tuple: "return noise alone",
    keeps_gradient: "no_grad",
    returns_data: "requires grad|memory of the data",
    not_finite: "float16.*nan or inf",
    too_long: "mean square",
    too_short: "mean square",
    by_strides: "view",
}


@dataclass(frozen=True)
class Planted:
    draw: object

    def __call__(self, data, *, cond=None, generator=None):
        if self.draw is keeps_gradient:
            return self.draw(data, cond, generator)
        with torch.no_grad():
            return self.draw(data, cond, generator)


@pytest.mark.parametrize("draw", PLANTED, ids=lambda draw: draw.__name__)
def test_planted_faults_are_found(draw):
    with pytest.raises(CouplingError, match=PLANTED[draw]) as caught:
        check_coupling(Planted(draw))
    assert "expected" in str(caught.value)
    assert "got" in str(caught.value)


@dataclass
class Counts:
    calls: int = 0

    def __call__(self, data, *, cond=None, generator=None):
        self.calls += 1
        return randn(data, generator)


@dataclass(frozen=True)
class Remembers:
    seen: list = field(default_factory=list)

    def __call__(self, data, *, cond=None, generator=None):
        self.seen.append(data.mean().item())
        return randn(data, generator)


class Hides:
    """State out of sight of __dict__."""

    __slots__ = ("calls",)

    def __call__(self, data, *, cond=None, generator=None):
        self.calls = getattr(self, "calls", 0) + 1
        return randn(data, generator) * (1 + 0.001 * self.calls)


@pytest.mark.parametrize("kind", [Counts, Remembers])
def test_state_is_found(kind):
    with pytest.raises(CouplingError, match="frozen dataclass"):
        check_coupling(kind())


def test_hidden_state_is_found():
    with pytest.raises(CouplingError, match="the same noise from the same seed"):
        check_coupling(Hides())


def test_the_check_leaves_no_trace():
    state = torch.get_rng_state()
    check_coupling(KNN(4))
    assert torch.equal(state, torch.get_rng_state())


def test_a_call_without_cond_is_named():
    class Deaf:
        def __call__(self, data):
            return torch.randn_like(data)

    with pytest.raises(CouplingError, match=r"expected a call coupling\(data, \*, cond=None"):
        check_coupling(Deaf())
