import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from itertools import islice

import pytest
import torch

from fixtures.two_processes import finish, start
from helpers import assert_same_weights, train, weights
from immiscible_diffusion.cli.main import main as cli
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.data import DataSet, check_split
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.models import MLP
from immiscible_diffusion.training.dataloader import TrainDataLoader
from immiscible_diffusion.training.ema import EMAConfig
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard

COUPLINGS = ["independent", "knn:k=4", "knn:k=4,center=mean", "assignment", "shuffled:knn:k=4"]


def seen_batches(recipe: Recipe, folder, steps: int = 4):
    """The data, times and noise of the first steps."""
    trainer = Trainer(recipe, RunDir.open(folder, recipe), device="cpu")
    seen = []
    with trainer.paired_loader() as loader:
        for step, (data, noise, _) in enumerate(islice(loader, steps)):
            rng = trainer.loader.streams(step)
            assert torch.equal(noise, trainer.coupling(data, generator=rng.noise))
            seen.append((data, recipe.path.sample_time(len(data), generator=rng.time), noise))
    return seen


def test_data_order_times_and_weights_are_the_same_for_every_coupling(tiny, tmp_path):
    reference = seen_batches(tiny, tmp_path / "reference")
    for index, coupling in enumerate(COUPLINGS[1:]):
        recipe = dataclasses.replace(tiny, coupling=coupling)
        for (data, t, noise), (data_0, t_0, noise_0) in zip(
            seen_batches(recipe, tmp_path / str(index)), reference, strict=True
        ):
            assert torch.equal(data, data_0)
            assert torch.equal(t, t_0)
            assert not torch.equal(noise, noise_0)
        first = Trainer(recipe, RunDir.open(tmp_path / str(index), recipe), device="cpu").run.model
        other = Trainer(tiny, RunDir.open(tmp_path / "reference", tiny), device="cpu").run.model
        for mine, theirs in zip(first.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_resumed_equals_uninterrupted_bit_for_bit(tiny, tmp_path, coupling):
    recipe = dataclasses.replace(tiny, coupling=coupling)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", until=3)
    train(recipe, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_resume_is_exact_with_dropout_too(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, model=MLP(width=32, depth=1, dropout=0.5))
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", until=5)
    train(recipe, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def command(folder, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "immiscible_diffusion", "train", "digits-flow", "--tiny"),
        *("--device", "cpu", "--out", str(folder), "--preview-every", "0", *options),
    ]


def wait_for_step(run: RunDir, step: int) -> None:
    deadline = time.monotonic() + 120
    while max((record["step"] for record in run.records("train")), default=0) < step:
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.02)


@pytest.mark.subprocess
def test_killed_at_a_random_step_and_resumed_equals_uninterrupted(tmp_path):
    options = ("--steps", "600", "--log-every", "1", "--checkpoint-every", "7")
    subprocess.run(command(tmp_path / "whole", *options), check=True, capture_output=True)
    process = subprocess.Popen(command(tmp_path / "killed", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_step(RunDir(tmp_path / "killed"), random.randrange(20, 200))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
    subprocess.run(command(tmp_path / "killed", *options), check=True, capture_output=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    steps = [record["step"] for record in RunDir(tmp_path / "killed").records("train")]
    assert steps == list(range(1, 601)), "every step is logged once"


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_write_a_checkpoint_and_say_how_to_resume(tmp_path, number):
    options = ("--steps", "100000", "--log-every", "1", "--checkpoint-every", "100000")
    process = subprocess.Popen(command(tmp_path / "run", *options), stderr=subprocess.PIPE, text=True)
    run = RunDir(tmp_path / "run")
    wait_for_step(run, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "the same command resumes" in said
    state = run.load_checkpoint()
    assert state is not None
    assert state["step"] == run.records("train")[-1]["step"]


def test_a_signal_in_process_stops_at_the_next_step(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, steps=50, checkpoint_every=50)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")

    def kill(step, model):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="step 7 of 50"):
        trainer.train(evaluate=kill, evaluate_at=(7,), quiet=True)
    trainer = train(recipe, tmp_path)
    assert trainer.step == 50


def test_a_signal_that_comes_while_ranks_ask_around_is_kept(tiny, tmp_path):
    trainer, guard = Trainer(tiny, RunDir.open(tmp_path, tiny), device="cpu"), InterruptGuard()

    class TwoRanks:
        num_processes = 2

        def gather(self, mine):
            guard.received = signal.SIGTERM
            return torch.cat([mine, mine])

    trainer.accelerator = TwoRanks()
    assert trainer.ask_ranks(guard) == (False, True), "the other rank has not heard of it"
    assert guard.received == signal.SIGTERM
    assert trainer.ask_ranks(guard) == (True, True)


@pytest.mark.subprocess
@pytest.mark.parametrize("gradient_accumulation_steps", [1, 2])
def test_two_ranks_equal_one_process_that_accumulates(tmp_path, gradient_accumulation_steps):
    options = ("--coupling", "knn:k=4,center=mean", "--optim.max_grad_norm", "0.1", "--gradient_accumulation_steps")
    subprocess.run(
        command(tmp_path / "one", *options, str(2 * gradient_accumulation_steps)), check=True, capture_output=True
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = command(tmp_path / "two", *options, str(gradient_accumulation_steps))
    subprocess.run([two[0], *launch, *two[1:]], check=True, capture_output=True, timeout=300)
    assert_equal_but_for_rounding(tmp_path / "one", tmp_path / "two")


def test_batch_size_must_divide():
    check_split(256, 8)
    with pytest.raises(ValueError, match=r"250.*8 parts.*nearest: 248 or 256"):
        check_split(250, 8)


@pytest.mark.parametrize(
    ("batch_size", "parts", "steps", "said"),
    [(16, 5, 5, "these are 5 parts"), (1, 1, 2, "cut into 1 part; .* with 1 process and")],
)
def test_parts_that_do_not_divide_are_named_as_what_they_are(batch_size, parts, steps, said):
    with pytest.raises(ValueError, match=said):
        TrainDataLoader(None, batch_size, 0, torch.device("cpu"), gradient_accumulation_steps=steps, parts=parts)


def test_a_resumed_run_says_how_it_goes_on_and_with_how_many_processes_it_can(tiny, tmp_path, capsys):
    train(dataclasses.replace(tiny, gradient_accumulation_steps=2), tmp_path, until=1)
    with pytest.raises(ValueError, match=r"cut into 2 parts.* 16 .* 1, 2, 4, 8 or 16 processes.* not 1 x 5"):
        train(dataclasses.replace(tiny, gradient_accumulation_steps=5), tmp_path)
    capsys.readouterr()
    for step, number in ((1, 1), (2, 3)):  # 3 do not divide 16, and the 2 pieces of each of 2 parts do
        recipe = dataclasses.replace(tiny, gradient_accumulation_steps=number)
        Trainer(recipe, RunDir(tmp_path), device="cpu").train(until=step + 1)
        assert f"from step {step}: 2 parts a step, 2 to a process" in capsys.readouterr().err


def test_training_lowers_the_loss_on_independent_noise(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, steps=300, validate_every=5, preview_every=0)
    run = train(recipe, tmp_path).run_dir
    losses = [record["loss"] for record in run.records("validation")]
    assert losses[-1] < 0.8 * losses[0]


def test_a_run_folder_of_another_recipe_is_refused(tiny, tmp_path):
    train(tiny, tmp_path, until=1)
    with pytest.raises(ValueError, match=r"another recipe \(batch_size: 16 -> 32\)"):
        RunDir.open(tmp_path, dataclasses.replace(tiny, batch_size=32))
    RunDir.open(tmp_path, dataclasses.replace(tiny, steps=100))  # training longer is the same


def test_a_broken_checkpoint_is_named(tiny, tmp_path):
    train(tiny, tmp_path, until=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read"):
        train(tiny, tmp_path)


def test_a_flipped_bit_of_a_checkpoint_or_of_weights_is_found(tiny, tmp_path):
    train(tiny, tmp_path, until=2)
    for file in (tmp_path / "checkpoint.pt", tmp_path / "weights" / "model.safetensors"):
        whole = file.read_bytes()
        at = len(whole) // 2  # among the weights
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=rf"{file.name}.* damaged"):
            _ = train(tiny, tmp_path) if file.suffix == ".pt" else load_run(tmp_path, "cpu")
        file.write_bytes(whole)
    assert train(tiny, tmp_path).step == tiny.steps


def test_a_checkpoint_of_another_recipe_is_named(tiny, tmp_path):
    train(tiny, tmp_path / "one", until=1)
    wider = dataclasses.replace(tiny, model=MLP(width=16, depth=1))
    train(wider, tmp_path / "other", until=1)
    (tmp_path / "one" / "checkpoint.pt").replace(tmp_path / "other" / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of this recipe"):
        train(wider, tmp_path / "other")


def test_moments_of_a_run_that_never_began_are_not_used(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, coupling="knn:k=4,center=mean")
    run = RunDir.open(tmp_path, recipe)
    Moments(torch.ones(1, 8, 8), 1.0, 1).save(tmp_path / "moments.safetensors")
    assert not torch.equal(Trainer(recipe, run, device="cpu").coupling.center.mean, torch.ones(1, 8, 8))
    assert Moments.load(tmp_path / "moments.safetensors").count > 1


def test_conditional_without_labels_is_refused(tiny, tmp_path):
    class Unlabeled(DataSet):
        name, shape = "scenes", (1, 8, 8)

        def __len__(self):
            return 32

        def batch(self, indices, generator=None):
            return Batch(torch.zeros(len(indices), 1, 8, 8))

    recipe = dataclasses.replace(tiny, conditional=True)
    with pytest.raises(ValueError, match=r"conditional, and the data set scenes has no labels"):
        Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu", dataset=Unlabeled())
    assert not list(tmp_path.iterdir())


def test_diverged_training_is_an_error(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, optim=dataclasses.replace(tiny.optim, lr=1e30, max_grad_norm=0), log_every=1)
    with pytest.raises(ValueError, match="loss is not a number at step"):
        train(recipe, tmp_path)


def test_the_average_decays_as_published(tiny, tmp_path):
    """Without a ramp: 0.99 old + 0.01 new at every step, from the weights after the first on."""
    recipe = dataclasses.replace(tiny, ema=EMAConfig(0.99), steps=3, preview_every=0)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    history = []
    with trainer.paired_loader() as loader:
        batches = iter(loader)
        for _ in range(3):
            trainer.train_step(batches)
            history.append([p.detach().clone() for p in trainer.run.model.parameters()])
    for first, second, third, mean in zip(*history, trainer.ema.model.parameters(), strict=True):
        expected = 0.99 * (0.99 * first + 0.01 * second) + 0.01 * third
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-7)


def assert_equal_but_for_rounding(one, two):
    left, right = weights(one), weights(two)
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coupling", ["knn:k=4", "assignment"])
def test_a_run_goes_on_in_other_micro_batches_of_the_same_parts(tiny, tmp_path, coupling):
    """A whole batch in 4 and 2 pieces; 4 micro-batches where 1 is asked for, and in 2 pieces each."""
    for before, steps in ((1, (1, 4, 2)), (4, (4, 1, 8))):
        recipe = dataclasses.replace(tiny, coupling=coupling, gradient_accumulation_steps=before)
        train(recipe, tmp_path / f"whole{before}")
        for until, number in zip((2, 5, 8), steps, strict=True):
            folder = tmp_path / f"parts{before}"
            run = train(dataclasses.replace(recipe, gradient_accumulation_steps=number), folder, until).run_dir
            assert run.load_checkpoint()["parts"] == [1, before]
        assert_equal_but_for_rounding(tmp_path / f"whole{before}", tmp_path / f"parts{before}")


def test_batches_that_are_paired_together_keep_their_processes(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, coupling="assignment:pool=2", gradient_accumulation_steps=2)
    run = train(recipe, tmp_path, until=4).run_dir
    run.save_checkpoint(run.load_checkpoint() | {"parts": [2, 1]})
    with pytest.raises(ValueError, match=r"by 2 x 1 processes .* here are 1 x 2.*keep both"):
        train(recipe, tmp_path)
    assert run.recipe() == recipe


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": MLP(width=32, depth=1, dropout=0.5)}, "Dropout"),
        ({"loss": RegressionLoss(input_perturbation=0.1)}, "noise of the loss"),
        ({}, None),
    ],
)
def test_what_other_micro_batches_change_is_named(tiny, tmp_path, change, named):
    recipe = dataclasses.replace(tiny, **change)
    train(recipe, tmp_path, until=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(dataclasses.replace(recipe, gradient_accumulation_steps=2), tmp_path)
    said = [str(w.message) for w in caught if "drawn as before" in str(w.message)]
    assert [named in words for words in said] == [True] * (named is not None)


@pytest.mark.subprocess
def test_a_run_that_loses_a_process_goes_on_in_another_number_of_them(tmp_path):
    """1 x 2 equals 2 x 1 of which one is killed, then four processes that share two parts, then 1 x 2."""
    options = ("--coupling", "assignment", "--log-every", "1", "--checkpoint-every", "5")
    accumulate, folder = "--gradient_accumulation_steps", tmp_path / "run"
    cli(command(tmp_path / "whole", *options, accumulate, "2", "--steps", "100")[3:])
    killed, other = start(2, *command(folder, *options, accumulate, "1", "--steps", "100")[3:])
    wait_for_step(RunDir(folder), random.randrange(6, 40))
    killed.kill()
    killed.communicate()
    said = other.communicate(timeout=60)[1]
    assert other.returncode > 0, said
    finish(start(4, *command(folder, *options, accumulate, "1", "--steps", "95")[3:]))
    cli(command(folder, *options, accumulate, "1", "--steps", "100")[3:])
    assert_equal_but_for_rounding(tmp_path / "whole", folder)


def test_every_start_is_an_entry_of_the_environment(tiny, tmp_path):
    run = train(tiny, tmp_path, until=4).run_dir
    train(tiny, tmp_path)
    starts = run.starts()
    assert [start["step"] for start in starts] == [0, 4]
    assert all(start["processes"] == 1 and "commit" in start for start in starts)
