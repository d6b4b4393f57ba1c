"""One assignment over all processes equals one process that has all rows."""

import itertools
from pathlib import Path

import pytest
import torch

from fixtures.two_processes import launch
from immiscible_diffusion import KNN, LinearAssignment, Shuffled
from immiscible_diffusion.couplings import parse_coupling

CASES = {
    "even": ([4, 4, 4, 4], {}),
    "uneven": ([5, 2, 1, 7], {}),
    "empty": ([3, 0, 6, 0], {}),
    "empty first": ([0, 4, 1, 2], {}),
    "conditions": ([6, 5, 4, 3], {"cond_key": "label"}),
    "soft": ([6, 5, 4, 3], {"cond_key": "text", "cond_cost": "soft"}),
    "oversample": ([3, 4, 2, 1], {"oversample": 3}),
    "parts": ([9, 8, 7, 6], {"max_size": 6}),
    "masks": ([4, 3, 2, 5], {"mask": True}),
    "half": ([4, 3, 2, 5], {"dtype": torch.bfloat16}),
}

WORKER = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[2])
from test_distributed import CASES, chunk
from immiscible_diffusion import LinearAssignment

dist.init_process_group("gloo")
rank, across = dist.get_rank(), "node" if sys.argv[3] == "node" else True
os.environ["GROUP_RANK"] = str(rank // 2)  # as torchrun on machines of two processes each
found = {}
for name, (sizes, options) in CASES.items():
    data, noise, cond, mask, generator, options = chunk(name, rank)
    coupling = LinearAssignment(across_ranks=across, **options)
    found[name] = coupling.pair(data, noise, cond=cond, mask=mask, generator=generator)
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""

FAULTY = """
import torch, torch.distributed as dist
from immiscible_diffusion import LinearAssignment

dist.init_process_group("gloo")
data = torch.randn(3, 4)
if dist.get_rank() == 1:
    data[2, 0] = float("nan")
try:
    LinearAssignment(across_ranks=True)(data)
except ValueError as error:
    print(f"RANK {dist.get_rank()}: {error}", flush=True)
dist.destroy_process_group()
"""

TOGETHER = """
import sys, time, torch, torch.distributed as dist
from immiscible_diffusion import LinearAssignment, PairedLoader
from immiscible_diffusion.utils.random import RandomStreams

dist.init_process_group("gloo")
rank = dist.get_rank()
loader = (torch.randn(6 + rank, 8) for _ in range(60))
coupling = LinearAssignment(across_ranks=True)
paired = PairedLoader(loader, coupling, streams=lambda n: RandomStreams(0, n, rank), ahead=2)
for step, (data, noise, cond) in enumerate(paired):
    if step % 7 == rank:
        time.sleep(0.02)
    total = noise.sum()
    dist.all_reduce(total)  # training, on the default group
    if step == 50:
        break  # in the middle of what was asked for
paired.close()
print(f"RANK {rank} done {float(total):.4f}", flush=True)
dist.destroy_process_group()
"""


def seeded(*parts):
    return torch.Generator().manual_seed(hash(parts) % 2**31)


def chunk(name, rank):
    """What ``rank`` brings in a case."""
    sizes, options = CASES[name]
    options = dict(options)
    number, dtype = list(CASES).index(name), options.pop("dtype", torch.float32)
    masked, count, oversample = (options.pop("mask", False), sizes[rank], options.get("oversample", 1))
    data = torch.randn(count, 2, 5, generator=seeded(number, rank)).to(dtype)
    noise = torch.randn(oversample * count, 2, 5, generator=seeded(number, rank, 1)).to(dtype)
    cond = {"label": torch.arange(count) % 2, "text": data[:, 0, :3].float() + 1}
    mask = (torch.arange(10).view(2, 5) <= rank + 3) if masked else None
    return data, noise, cond, mask, seeded(number, 2), options


@pytest.mark.subprocess
@pytest.mark.parametrize("groups", [[range(2)], [range(4)], [range(2), range(2, 4)]], ids=["2", "4", "2 nodes x 2"])
def test_ranks_equal_one_process(groups, tmp_path):
    """The ranks of each node, where these pair together."""
    across, processes = "node" if len(groups) > 1 else "all", groups[-1].stop
    launch(WORKER, processes, tmp_path, Path(__file__).parent, across, folder=tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(processes)]
    for name, ranks in itertools.product(CASES, groups):
        chunks = [chunk(name, rank) for rank in ranks]
        data, noise = (torch.cat([c[part] for c in chunks]) for part in (0, 1))
        options = chunks[0][5]
        if oversample := options.get("oversample"):
            split = [c[1].unflatten(0, (oversample, len(c[0]))) for c in chunks]
            noise = torch.cat(split, dim=1).flatten(0, 1)
        cond = {key: torch.cat([c[2][key] for c in chunks]) for key in chunks[0][2]}
        mask = None
        if chunks[0][3] is not None:
            mask = torch.cat([c[3].expand(c[0].shape) for c in chunks])
        one = LinearAssignment(**options)
        want = one.pair(data, noise, cond=cond, mask=mask, generator=chunks[0][4])
        got = torch.cat([found[rank][name] for rank in ranks])
        assert got.dtype == want.dtype
        assert torch.equal(got, want), name


@pytest.mark.subprocess
def test_a_fault_of_one_rank_is_raised_on_all(tmp_path):
    said = launch(FAULTY, 2, folder=tmp_path)
    assert "RANK 1: data row 2 is not finite" in said
    assert "RANK 0: rank 1 could not pair its batch" in said


@pytest.mark.subprocess
def test_pairing_in_a_thread_and_collectives_of_training_never_wait_for_each_other(tmp_path):
    said = launch(TOGETHER, 2, folder=tmp_path)
    assert said.count("done") == 2


def test_who_works_across_ranks():
    assert LinearAssignment(across_ranks=True).across_ranks
    assert parse_coupling("shuffled:assignment:across_ranks=node").across_ranks == "node"
    with pytest.raises(ValueError, match="across_ranks must be true, false or node, got 'rack'"):
        LinearAssignment(across_ranks="rack")
    assert Shuffled(LinearAssignment(across_ranks=True)).across_ranks
    assert not LinearAssignment().across_ranks
    assert not Shuffled(KNN(4)).across_ranks
    assert LinearAssignment(across_ranks=True)(torch.ones(3, 2)).shape == (3, 2)  # no group: plain
