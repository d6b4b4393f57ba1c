"""Couplings by name, and whose code a name may import."""

import subprocess
import sys
from functools import partial

import pytest
import torch

from immiscible_diffusion import (
    KNN,
    Calibrated,
    GaussianOT,
    Independent,
    LinearAssignment,
    Moments,
    NoiseDistribution,
    Shuffled,
    parse_coupling,
)
from immiscible_diffusion.couplings import MaskedCoupling, WarmUp, check_coupling_name
from immiscible_diffusion.couplings.base import FunctionCoupling
from immiscible_diffusion.couplings.describe import DataSpec, describe_coupling
from immiscible_diffusion.couplings.projected import Projected

MEAN = Moments(torch.zeros(6), 1.0, 10)


@pytest.mark.parametrize(
    ("name", "coupling"),
    [
        ("independent", Independent()),
        (" knn:k=16 ", KNN(16)),
        ("knn:k=16,center=none", KNN(16)),
        ("knn:k=16,center=mean", KNN(16, center=MEAN)),
        ("knn: k = 16 , center = mean", KNN(16, center=MEAN)),
        ("assignment", LinearAssignment()),
        ("assignment:cost=norm", LinearAssignment(cost="norm")),
        ("shuffled:knn:k=4", Shuffled(KNN(4))),
        ("shuffled:shuffled:independent", Shuffled(Shuffled(Independent()))),
        ("immiscible_diffusion:KNN(k=3)", KNN(3)),
        ("immiscible_diffusion.couplings.knn:KNN(k=3, center=None)", KNN(3)),
        ("immiscible_diffusion:Independent", Independent()),
        ("shuffled:immiscible_diffusion:Independent()", Shuffled(Independent())),
    ],
)
def test_names(name, coupling):
    assert parse_coupling(name, MEAN, allow_import=True) == coupling


def test_moments_are_fitted_only_if_needed():
    fits = []

    def fit():
        fits.append(1)
        return MEAN

    assert parse_coupling("knn:k=2", fit) == KNN(2)
    assert not fits
    assert parse_coupling("shuffled:knn:k=2,center=mean", fit) == Shuffled(KNN(2, center=MEAN))
    assert fits == [1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "unknown coupling ''; known: independent, knn"),
        ("nearest", "unknown coupling 'nearest'; known: independent, knn"),
        ("KNN:k=4", "unknown coupling.*did you mean 'knn'"),
        ("KNN(k=4)", "did you mean 'knn'"),
        ("asignment", "did you mean 'assignment'"),
        ("shufled:assignment", "cannot be imported.*did you mean 'shuffled'"),
        ("matched:assignment", "train with 'assignment', and sample with init_noise matched"),
        ("knn:K=4", "coupling 'knn:K=4': got an unexpected keyword argument 'K'; options: k"),
        ("projected:assignment", "got pool=None and rank=None"),
        ("knn", "'k'.*options: k, center"),
        ("knn:k=0", "k must be a whole number"),
        ("knn:k=four", "k must be a whole number >= 1, got 'four'"),
        ("knn:4", "'4' is not of the form option=value"),
        ("knn:k=", "'k=' is not of the form"),
        ("knn:k=2,k=3", "'k' is given twice"),
        ("knn:k=2,centre=mean", "centre.*options: k, center"),
        ("knn:k=2,center=sum", "center=sum is unknown; use one of mean, label, channel"),
        ("knn:k=2,center=mean", "needs the moments of the data"),
        ("assignment:cost=l2", "inner, norm, l1, got 'l2'"),
        ("independent:k=2", "options: none"),
        ("shuffled:", "unknown coupling ''"),
        ("no_such_module:Mine", "cannot be imported: No module named 'no_such_module'"),
        ("immiscible_diffusion:NoSuch", "cannot be imported"),
        ("immiscible_diffusion:KNN(3)", "use option=value only"),
        ("immiscible_diffusion:KNN(**{})", "use option=value only"),
        ("immiscible_diffusion:KNN(k=)", "cannot read"),
        ("immiscible_diffusion:KNN(k=open('x'))", "cannot read"),
        ("immiscible_diffusion:KNN(k=2)+f(3)", "one pair of brackets"),
        ("immiscible_diffusion:KNN(k=2)(k=3)", "one pair of brackets"),
        ("immiscible_diffusion:__version__", "is no coupling"),
        ("immiscible_diffusion:KNN(j=2)", "options: k, center"),
    ],
)
def test_errors_of_names(name, message):
    with pytest.raises(ValueError, match=message):
        parse_coupling(name, allow_import=True)


def test_switches_are_read_in_small_letters():
    assert parse_coupling("assignment:across_ranks=true,negate=False") == LinearAssignment(across_ranks=True)


# -- str(coupling) ---------------------------------------------------------------------------------

FITTED = Moments.fit([(torch.randn(80, 6), torch.arange(80) % 4)], directions=3)
STANDARD = NoiseDistribution.standard(FITTED)


@pytest.mark.parametrize(
    ("name", "coupling"),
    [
        ("independent", Independent()),
        ("knn:k=16", KNN(16)),
        ("knn:k=16,center=mean", KNN(16, center=FITTED)),
        ("knn:k=16,center=label", KNN(16, center="label", moments=FITTED)),
        ("assignment", LinearAssignment()),
        ("assignment:cost=norm,pool=4,standardize=true", LinearAssignment("norm", pool=4, standardize=True)),
        ("assignment:cond_key=label,cond_cost=soft", LinearAssignment(cond_key="label", cond_cost="soft")),
        ("gaussian_ot", GaussianOT(FITTED)),
        ("gaussian_ot:eps=2.5,rank=2", GaussianOT(FITTED, 2.5, 2)),
        ("shuffled:knn:k=4", Shuffled(KNN(4))),
        ("calibrated:knn:k=4", Calibrated(KNN(4), STANDARD)),
        ("shuffled:calibrated:assignment", Shuffled(Calibrated(LinearAssignment(), STANDARD))),
        ("knn:k=4,start_step=10", WarmUp(KNN(4), 10)),
        ("independent:start_step=0", WarmUp(Independent(), 0)),
        ("shuffled:knn:k=4,start_step=10", Shuffled(WarmUp(KNN(4), 10))),
    ],
)
def test_a_coupling_gives_its_name_back(name, coupling):
    assert str(coupling) == name
    assert parse_coupling(name, FITTED, STANDARD) == coupling


NAMED = [
    KNN(3, center="label", moments=FITTED, label_key="class"),
    KNN(3, center="channel", moments=FITTED),
    LinearAssignment("l1", negate=True, pool=3, max_size=8, across_ranks=True),
    LinearAssignment(oversample=2, mismatch_rate=1e-05, cond_key="none", cond_cost="soft"),
    LinearAssignment(cond_key="a, 'b'=1: (c)"),
]
NOT_IN_ALL = [GaussianOT(FITTED, eps=0.5, rank=1), WarmUp(KNN(4, center=FITTED), 7)]  # it takes no mask, it changes
AROUND_ALL = (Shuffled, partial(WarmUp, start_step=5), partial(Projected, pool=2))
NOT_IN_ALL += [around(inner) for inner in NOT_IN_ALL for around in AROUND_ALL]
AROUND = [
    Shuffled,
    MaskedCoupling,
    lambda inner: WarmUp(inner, 5),
    lambda inner: MaskedCoupling(inner, cond_key="hole"),
    lambda inner: Calibrated(inner, STANDARD, label_key="class"),
    lambda inner: WarmUp(Calibrated(inner, STANDARD), 5),
    lambda inner: Shuffled(MaskedCoupling(inner, cond_key="the hole, if any")),
    partial(Projected, pool=2),
]


@pytest.mark.parametrize("inner", [*NAMED, *NOT_IN_ALL], ids=str)
def test_every_option_comes_back_inside_every_wrapper(inner):
    for coupling in (inner, *(around(inner) for around in AROUND if inner in NAMED)):
        assert parse_coupling(str(coupling), FITTED, STANDARD) == coupling


@pytest.mark.parametrize(
    "name",
    [
        "masked:gaussian_ot",
        "masked:aligned:knn:k=2",
        "calibrated:knn:k=2,start_step=5",
        "calibrated:shuffled:knn:k=2,start_step=5",
    ],
)
def test_a_wrapper_refuses_what_it_could_not_call(name):
    with pytest.raises(ValueError, match=r"pairs by a mask|changes with the step"):
        check_coupling_name(name)


def test_what_was_fitted_is_asked_for_by_name():
    with pytest.raises(ValueError, match="needs the moments of the data"):
        parse_coupling(str(KNN(4, center=FITTED)))
    with pytest.raises(ValueError, match=r"needs distribution=NoiseDistribution\.measure"):
        parse_coupling(str(Calibrated(KNN(4), STANDARD, label_key="class")))


@pytest.mark.parametrize("coupling", [*NAMED, *NOT_IN_ALL, *(around(KNN(4)) for around in AROUND)], ids=str)
def test_a_checkpoint_that_holds_a_coupling_loads_weights_only(coupling, tmp_path):
    if isinstance(coupling, Calibrated):
        coupling(torch.randn(4, 6))  # fills its cache
    torch.save({"coupling": coupling, "step": 3}, tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["coupling"] == coupling


def test_a_coupling_without_a_name_gives_its_repr():
    assert str(FunctionCoupling(plain)) == repr(plain)


def plain(data, *, cond=None, generator=None):
    return torch.randn(data.shape, generator=generator)


# -- code ------------------------------------------------------------------------------------------

SPY = """
import dataclasses, pathlib
from immiscible_diffusion import Coupling, KNN

pathlib.Path({mark!r}).write_text("imported")

@dataclasses.dataclass(frozen=True)
class Mine(Coupling):
    k: int = 2

    def choose(self, data, noise, cond, mask, generator):
        return KNN(self.k)(data, generator=generator)

def function(data, *, cond=None, generator=None):
    return KNN(2)(data, generator=generator)

def older(data):
    return data

class Object:
    def __call__(self, data, *, cond=None, generator=None):
        return KNN(2)(data, generator=generator)

instance = Object()
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that exists once the module ``spy_coupling`` is imported."""
    path = tmp_path / "imported"
    (tmp_path / "spy_coupling.py").write_text(SPY.format(mark=str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spy_coupling", raising=False)
    yield path
    sys.modules.pop("spy_coupling", None)


NAMES = ["spy_coupling:Mine(k=4)", "shuffled:spy_coupling:Mine", "calibrated:spy_coupling:function"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_imported_unless_the_user_named_it(mark, name):
    calls = [
        lambda: parse_coupling(name, FITTED, STANDARD),
        lambda: check_coupling_name(name),
        lambda: describe_coupling(name, DataSpec((3, 4))),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"give --allow-code .*allow_import='spy_coupling:") as error:
            call()
        assert "\n" not in str(error.value)
    for other in ("spy_coupling:other", "spy:Mine", "os:system", "", "knn:k=4"):
        with pytest.raises(ValueError, match="give --allow-code"):
            check_coupling_name(name, allow_import=other)
    assert not mark.exists()
    parse_coupling(name, FITTED, STANDARD, allow_import=f"shuffled:{name}")
    assert mark.exists()


def test_classes_and_functions_of_ones_own(mark):
    data, generator = torch.randn(5, 6), torch.Generator
    for name in ("Mine", "function", "Mine()"):
        coupling = parse_coupling(f"spy_coupling:{name}", allow_import=True)
        noise = coupling(data, generator=generator().manual_seed(0))
        assert torch.equal(noise, KNN(2)(data, generator=generator().manual_seed(0)))


@pytest.mark.parametrize("name", ["Object", "Object()", "instance", "older", "function()", "pathlib", "Coupling"])
def test_nothing_else_is_a_coupling(mark, name):
    with pytest.raises(ValueError, match="is no coupling"):
        parse_coupling(f"spy_coupling:{name}", allow_import=True)


@pytest.mark.parametrize("name", ["torch.nn:Identity", "torch:randn", "builtins:print", "torch.nn:Identity(a=1)"])
def test_what_can_merely_be_called_is_no_coupling(name):
    with pytest.raises(ValueError, match="is no coupling"):
        parse_coupling(name, allow_import=True)


@pytest.mark.parametrize(
    "name", ["os:system", "os:system(command='touch {}')", "subprocess:Popen(args=['touch', '{}'])"]
)
def test_a_command_is_no_coupling_and_is_not_called(tmp_path, name, monkeypatch):
    name = name.format(tmp_path / "touched")
    calls = []
    monkeypatch.setattr("os.system", lambda command: calls.append(command))
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *a, **k: calls.append(a))
    with pytest.raises(ValueError, match="if you trust it"):
        parse_coupling(name)
    with pytest.raises(ValueError, match="is no coupling"):
        parse_coupling(name, allow_import=True)
    assert not calls
    assert not (tmp_path / "touched").exists()


def test_a_name_that_nests_without_end_is_an_error():
    with pytest.raises(ValueError, match="at most 1000 characters"):
        parse_coupling("shuffled:" * 3000 + "independent")
