"""Bad input to the linear assignment: named for what it is, and on all ranks, so none waits."""

import warnings
from pathlib import Path

import pytest
import torch

from fixtures.two_processes import launch
from immiscible_diffusion import LinearAssignment

CASES = ("integers", "no rows of shape", "generator", "width", "kind", "noise", "no noise")

WORKER = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_assignment_faults import CASES, call

dist.init_process_group("gloo")
rank = dist.get_rank()
for case in CASES:
    try:
        call(case, rank)
        said = "nothing"
    except (ValueError, TypeError, RuntimeError) as error:
        said = f"{type(error).__name__} {error}"
    line = f"RANK {rank} {case}: {said}".replace(chr(10), " ")
    print(line + chr(10), end="", flush=True)  # in one piece, as two ranks write
    dist.barrier()
dist.destroy_process_group()
"""

SHAPES = """
import sys, torch, torch.distributed as dist
from immiscible_diffusion import LinearAssignment

dist.init_process_group("gloo")
rank = dist.get_rank()
generator = torch.Generator().manual_seed(rank)
data = torch.randn(6, 3 + rank % 2, generator=generator)
noise = torch.randn(data.shape, generator=generator)
cond = {} if rank == 3 else {"label": torch.arange(6) % 2}
if rank == 3:
    data, noise = data[:0], noise[:0]
coupling = LinearAssignment(across_ranks=True, cond_key="label")
torch.save((data, noise, coupling.pair(data, noise, cond=cond)), f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


def call(case, rank):
    """Rank 1 brings what does not fit."""
    data, options, cond, generator = torch.randn(5, 3), {}, None, None
    noise = torch.randn(5, 3)
    if rank == 1:
        data = {"integers": data.long(), "no rows of shape": data[:0, 0]}.get(case, data)
        generator = "none" if case == "generator" else None
        noise = {"noise": noise * float("nan"), "no noise": None}.get(case, noise)
    if case in ("width", "kind"):
        options, shape = {"cond_key": "c"}, (5, 2 + rank) if case == "width" else (5, 2)
        cond = {"c": torch.zeros(shape, dtype=(torch.int64, torch.float32)[rank * (case == "kind")])}
    coupling = LinearAssignment(across_ranks=True, **options)
    if "noise" in case:
        coupling.pair(data, noise)
    else:
        coupling(data, cond=cond, generator=generator)


@pytest.mark.subprocess
def test_a_fault_of_one_rank_never_leaves_another_waiting(tmp_path):
    said = launch(WORKER, 2, Path(__file__).parent, folder=tmp_path)
    for case in CASES:
        for rank in (0, 1):
            line = next(x for x in said.splitlines() if x.startswith(f"RANK {rank} {case}:"))
            assert "Error " in line, line
            assert "Connection" not in line, line
    assert "RANK 0 integers: ValueError rank 1 could not pair its batch" in said
    assert "RANK 0 width: ValueError conditions of all ranks must have one shape" in said


@pytest.mark.subprocess
def test_ranks_of_other_shapes_are_paired_apart_and_an_empty_one_needs_no_condition(tmp_path):
    launch(SHAPES, 4, tmp_path, folder=tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for members in ([0, 2], [1]):
        data, noise, got = (torch.cat([ranks[r][part] for r in members]) for part in range(3))
        cond = {"label": torch.arange(len(data)) % 2}
        assert torch.equal(got, LinearAssignment(cond_key="label").pair(data, noise, cond=cond))
    assert ranks[3][2].shape == (0, 4)


def test_noise_that_is_not_finite_is_named():
    noise = torch.randn(6, 3)
    noise[3, 1] = float("nan")
    for options in ({}, {"cost": "l1"}, {"max_size": 2}):
        with pytest.raises(ValueError, match="noise row 3 is not finite"):
            LinearAssignment(**options).pair(torch.zeros(6, 3), noise)
    for noise in (None, torch.zeros(6, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match="noise must be"):
            LinearAssignment().pair(torch.zeros(6, 3), noise)


def test_paired_noise_is_of_the_dtype_of_data():
    data = torch.randn(6, 3).half()
    assert LinearAssignment().pair(data, torch.randn(6, 3).double()).dtype == torch.float16


def test_one_datum_chooses_among_a_surplus_and_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data, noise = torch.ones(1, 3), torch.tensor([[9.0] * 3, [0.9] * 3, [-1.0] * 3])
        assert torch.equal(LinearAssignment(oversample=3).pair(data, noise), noise[1:2])


def test_no_part_is_left_with_one_datum():
    data, noise = torch.randn(2, 257, 8, generator=torch.Generator().manual_seed(0))
    index = LinearAssignment(max_size=256).assign(data, noise)
    order = index.argsort()
    assert torch.equal(index[order], torch.arange(257))
    parts = LinearAssignment(max_size=256)._problems(data, None, None)
    assert [len(part) for part in parts] == [129, 128]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (torch.full((6, 2), float("nan")), r'cond\["c"\] is not finite'),
        (torch.rand(6), "a condition of one number has none"),
        (torch.tensor(3), r'cond\["c"\] must be a tensor \[6, ...\]'),
        ([0] * 6, r'cond\["c"\] must be a tensor \[6, ...\]'),
    ],
)
def test_conditions_that_say_nothing_are_refused(condition, message):
    # A cosine of single numbers is always 1 in size: the soft cost would do nothing, silently.
    with pytest.raises(ValueError, match=message):
        LinearAssignment(cond_key="c", cond_cost="soft")(torch.zeros(6, 3), cond={"c": condition})


@pytest.mark.parametrize("value", [1, 2.5, "a"])
def test_max_size_is_a_whole_number(value):
    with pytest.raises(ValueError, match=r"max_size must be at least 2, got .*whole"):
        LinearAssignment(max_size=value)
