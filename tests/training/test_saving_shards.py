"""Shards that are written while training continues, and ranks that are killed at any moment of either."""

import dataclasses
import json
import sys

import pytest

from fixtures.forked_ranks import run
from helpers import assert_equal_but_for_rounding, assert_same_weights
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir

pytestmark = [
    pytest.mark.slow,
    pytest.mark.subprocess,
    pytest.mark.skipif(sys.platform == "win32", reason="fork, SIGKILL"),
]

COMMON = """
import contextlib, dataclasses, errno, json, os, random, signal, sys, threading
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from fixtures.forked_ranks import fork, wait
from immiscible_diffusion.training import sharding
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.signals import Interrupted

torch.set_num_threads(1)
recipe, root = Recipe.from_dict(json.loads(sys.argv[1])), Path(sys.argv[2])

def train(rank, name, **options):
    Trainer(recipe, RunDir(root / name), device="cpu").train(quiet=True, **options)

assert wait(fork(2, train, "whole")) == [0, 0]
"""

HELD_AND_FAILED = """
write = FileSystemWriter.write_data

def held(rank):
    '''Rank 0 writes the first shards after step 6, when a signal comes.'''
    may_write = threading.Event()

    def write_data(*arguments):
        assert rank or may_write.wait(60), "nothing was trained while shards were to be written"
        return write(*arguments)

    def evaluate(step, model):
        assert not RunDir(root / "parts").checkpoint.exists()
        may_write.set()
        os.kill(os.getpid(), signal.SIGTERM)

    FileSystemWriter.write_data = write_data
    with pytest.raises(Interrupted, match="step 10 of 60"):
        train(rank, "parts", evaluate=evaluate, evaluate_at=(6,))
    assert RunDir(root / "parts").load_checkpoint()["step"] == 10

def failed(rank):
    '''Goes back to the first shards; rank 1 cannot write those of step 12.'''
    def write_data(writer, *arguments):
        if rank and writer.path.name == "step_000012":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(writer, *arguments)

    FileSystemWriter.write_data = write_data
    with pytest.raises(OSError, match="cannot write .*step_000012: .*No space left"):
        train(rank, "parts", resume_from=4)
    assert RunDir(root / "parts").load_checkpoint()["step"] == 8

def raised(rank):
    '''Step 19 fails twice, while shards of step 16 are saved: rank 1 cannot write them, then all are written.'''
    trainer, run = Trainer(recipe, RunDir(root / "raised"), device="cpu"), RunDir(root / "raised")
    step, warned = trainer.train_step, pytest.warns(UserWarning, match="not completed: .*step_000016: .*No space")

    def write_data(writer, *arguments):
        if rank and writer.path.name == "step_000016":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(writer, *arguments)

    def train_step(batches):
        if trainer.step == 18:
            raise RuntimeError("a fault")
        step(batches)

    trainer.train_step = train_step
    for writing, at, expected in ((write_data, 12, warned), (write, 16, contextlib.nullcontext())):
        FileSystemWriter.write_data = writing
        with pytest.raises(RuntimeError, match="a fault"), expected:
            trainer.train(quiet=True)
        assert trainer.saving is None
        assert rank or run.load_checkpoint()["step"] == at
    trainer.train_step = step
    trainer.train(quiet=True)

def built(rank):
    '''Ranks gather no weights to be compiled, nor to count operations, which one of them may do alone.'''
    sharding.whole = None
    assert Trainer(dataclasses.replace(recipe, compile=True), RunDir(root / "built"), device="cpu").flops > 0

for work in (held, failed, raised, built):
    assert wait(fork(2, work)) == [0, 0]
assert wait(fork(2, train, "parts")) == [0, 0]
"""

# A rank that dies counts, from a step on, the calls of its main thread, or the changes of any thread to files of the
# checkpoint, and dies at a random one. The kills are spread over the first 50 steps.
KILLS = """
CALLS, CHANGES = 60_000, {True: 30, False: 3}  # at most: of some steps, of the saves of rank 0 and of others

def train_and_die(rank, name, victim, start, unit, number):
    if rank != victim:
        return train(rank, name)
    trainer = Trainer(recipe, RunDir(root / name), device="cpu")
    left, step = [number], trainer.train_step
    files = tuple(f"{root / name / file}" for file in ("checkpoint", "shards", "weights"))

    def count(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def change(event, arguments):
        changes = event.startswith(("os.", "shutil.")) or (event == "open" and arguments[1] in ("w", "wb", "w+b"))
        if changes and trainer.step >= start and str(arguments[0]).startswith(files):
            count()

    def train_step(batches):
        if unit == "calls" and trainer.step >= start:
            sys.setprofile(count)
        step(batches)

    trainer.train_step = train_step
    if unit == "changes":
        sys.addaudithook(change)
    trainer.train(quiet=True)

def kill(name, worlds, kills):
    '''How many kills came between the first shards of a save and the checkpoint that names them.'''
    rng, run, unfinished = random.Random(name), RunDir(root / name), 0
    for number in range(kills):
        ranks = rng.choice(worlds) if run.checkpoint.exists() else 2  # before it the number of ranks decides
        victim, unit = rng.randrange(ranks), rng.choice(["calls", "changes"])
        moment = rng.randint(1, CALLS if unit == "calls" else CHANGES[victim == 0])
        codes = wait(fork(ranks, train_and_die, name, victim, 50 * number // kills, unit, moment))
        assert codes.pop(victim) == -signal.SIGKILL, "the run ended before it was killed"
        assert set(codes) <= {1}, codes  # the others end by themselves
        begun = max((int(folder.name[5:]) for folder in run.root.glob("shards/*")), default=0)
        unfinished += begun > (run.load_checkpoint() or {"step": 0})["step"]
    ranks = rng.choice(worlds)
    assert wait(fork(ranks, train, name)) == [0] * ranks
    return unfinished

print(json.dumps([kill("equal", [2], 8), kill("changed", [1, 2, 4], 12)]))
"""


@pytest.fixture
def recipe():
    """An MLP, saved every four steps."""
    tiny = recipe_from_name("digits-flow").tiny()
    often = {"steps": 60, "log_every": 1, "checkpoint_every": 4, "validate_every": 60, "preview_every": 0}
    return dataclasses.replace(tiny, coupling="knn:k=4", checkpoints_total_limit=None, **often)


def test_training_goes_on_while_shards_are_written(recipe, tmp_path):
    """From a copy that later steps do not change; signals and faults wait for them, whose own are raised."""
    run(COMMON + HELD_AND_FAILED, json.dumps(recipe.to_dict()), tmp_path, folder=tmp_path)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "raised")


def test_ranks_killed_at_random_moments(recipe, tmp_path):
    """Twenty times, and begun again on as many ranks, or on 1, 2 or 4."""
    recipe = dataclasses.replace(recipe, checkpoints_total_limit=2)
    unfinished = run(COMMON + KILLS, json.dumps(recipe.to_dict()), tmp_path, folder=tmp_path)
    assert min(json.loads(unfinished.splitlines()[-1])) > 0
    assert_same_weights(tmp_path / "whole", tmp_path / "equal")
    assert_equal_but_for_rounding(tmp_path / "whole", tmp_path / "changed")
    for name in ("equal", "changed"):
        killed = RunDir(tmp_path / name)
        assert [record["step"] for record in killed.records("train")] == list(range(1, 61)), "each is logged once"
        assert set(killed.kept_checkpoints) == {56, 60}
        assert {folder.name for folder in killed.root.glob("shards/*")} <= {"step_000056", "step_000060"}
        assert {file.name for file in killed.root.rglob(".*")} <= {".metadata"}, "what was left behind is removed"
