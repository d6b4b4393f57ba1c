"""A paired loader across ranks: loaders of different lengths, faults, and seeds."""

import pytest
import torch

from fixtures.two_processes import launch
from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.utils.random import RandomStreams

LENGTHS = [(3, 1), (1, 4), (2, 2), (0, 3)]

UNEVEN = """
import sys, torch, torch.distributed as dist
from immiscible_diffusion import LinearAssignment, Shuffled
from immiscible_diffusion import PairedLoader

dist.init_process_group("gloo")
rank, found = dist.get_rank(), []
for case, lengths in enumerate(LENGTHS):
    for ahead in (0, 1, 2):
        data = [torch.full((3, 8), float(10 * rank + i)) for i in range(lengths[rank])]
        made = PairedLoader(data, LinearAssignment(across_ranks=True), seed=case, ahead=ahead)
        noises = [noise for _, noise, _ in made]
        found.append(torch.stack(noises) if data else None)
list(PairedLoader([torch.randn(4, 2)] * (1 + rank), Shuffled(LinearAssignment(across_ranks=True))))
torch.save(found, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""

FAULTS = """
import torch, torch.distributed as dist
from immiscible_diffusion import LinearAssignment
from immiscible_diffusion import PairedLoader

dist.init_process_group("gloo")
rank, coupling = dist.get_rank(), LinearAssignment(across_ranks=True)

def say(what, work):
    try:
        work()
        print(f"{what} RANK {rank}: well", flush=True)
    except Exception as error:
        print(f"{what} RANK {rank}: {error}", flush=True)

def loader():
    yield torch.zeros(2, 8)
    if rank == 1:
        raise OSError("the disk is gone")
    yield torch.zeros(2, 8)

say("loader", lambda: list(PairedLoader(loader(), coupling)))
torch.manual_seed(0)
say("seeds", lambda: list(PairedLoader([torch.zeros(4, 8)] * 2, coupling)))
torch.manual_seed(0)
say("alike", lambda: coupling(torch.zeros(4, 8)))

def two():
    with PairedLoader([torch.zeros(2, 8)] * 3, coupling) as one:
        first = iter(one)
        next(first)
        next(iter(PairedLoader([torch.zeros(2, 8)] * 3, coupling)))

say("two", two)
say("after", lambda: list(PairedLoader([torch.zeros(2, 8)] * 3, coupling)))
dist.destroy_process_group()
"""


@pytest.mark.subprocess
def test_loaders_of_any_lengths_end_together_and_equal_one_process(tmp_path):
    launch(UNEVEN.replace("LENGTHS", repr(LENGTHS)), 2, tmp_path, folder=tmp_path)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, lengths in enumerate(LENGTHS):
        plain = [found[rank][3 * case] for rank in range(2)]
        for more in (1, 2):
            for rank in range(2):
                again = found[rank][3 * case + more]
                assert (again is None) == (lengths[rank] == 0)
                assert again is None or torch.equal(again, plain[rank])
        for batch in range(max(lengths)):
            ranks = [rank for rank in range(2) if batch < lengths[rank]]
            data = torch.cat([torch.full((3, 8), float(10 * r + batch)) for r in ranks])
            streams = [RandomStreams(case, batch, rank) for rank in ranks]
            noise = torch.cat([torch.randn(3, 8, generator=s.noise) for s in streams])
            want = LinearAssignment().pair(data, noise)
            assert torch.equal(torch.cat([plain[rank][batch] for rank in ranks]), want)


@pytest.mark.subprocess
def test_faults_reach_all_ranks_and_nothing_hangs(tmp_path):
    said = launch(FAULTS, 2, folder=tmp_path)
    assert "loader RANK 1: the disk is gone" in said
    assert "loader RANK 0: rank 1 could not pair its batch" in said
    assert said.count("seeds RANK 0: well") == said.count("seeds RANK 1: well") == 1
    assert "alike RANK 0: ranks 0 and 1 drew the same noise" in said
    assert "alike RANK 1: rank 0 could not pair" in said
    assert said.count("another PairedLoader across ranks is under way") == 2
    assert said.count("after RANK 0: well") == said.count("after RANK 1: well") == 1
