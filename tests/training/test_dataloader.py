"""What the steps are fed with, through whole trainings: prefetch, pools, image scaling."""

import dataclasses
import itertools
import threading
from itertools import islice

import pytest
import torch

from helpers import assert_same_weights, train
from immiscible_diffusion.couplings import PairedBatch
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.training.dataloader import TrainDataLoader
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_json
from immiscible_diffusion.utils.batch import Batch

POOLED = """
import dataclasses
from immiscible_diffusion import LinearAssignment

@dataclasses.dataclass(frozen=True)
class Pooled(LinearAssignment):
    pool: int = 3

    def choose(self, data, noise, cond, mask, generator):
        assert self.pool == 1
        return super().choose(data, noise, cond, mask, generator)
"""


@pytest.mark.parametrize("until", [1, 2, 5])
def test_resumed_within_a_pool_equals_uninterrupted(tiny, tmp_path, monkeypatch, until):
    """Two micro-batches a step, pools of three: steps 1 and 2 begin within a pool."""
    (tmp_path / "pooled_coupling.py").write_text(POOLED)
    monkeypatch.syspath_prepend(tmp_path)
    recipe = dataclasses.replace(
        tiny, coupling="shuffled:pooled_coupling:Pooled()", gradient_accumulation_steps=2, preview_every=0
    )
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", until=until)
    train(recipe, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


# -- workers and prefetch -------------------------------------------------------------------------------------


def test_workers_change_nothing_in_a_run_that_is_resumed(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, gradient_accumulation_steps=2, preview_every=0)
    loaded = dataclasses.replace(recipe, num_workers=2)
    train(recipe, tmp_path / "plain")
    train(loaded, tmp_path / "workers", until=3)
    train(loaded, tmp_path / "workers")
    assert_same_weights(tmp_path / "plain", tmp_path / "workers")


@pytest.mark.parametrize("coupling", ["knn:k=4", "assignment"])
def test_how_far_ahead_noise_is_paired_changes_nothing(tiny, tmp_path, coupling):
    for ahead in (0, 1, 3):
        recipe = dataclasses.replace(
            tiny, coupling=coupling, prefetch=ahead, gradient_accumulation_steps=2, preview_every=0
        )
        train(recipe, tmp_path / str(ahead))
        assert_same_weights(tmp_path / "0", tmp_path / str(ahead))
        record = RunDir(tmp_path / str(ahead)).records("train")[-1]
        assert record["pairing_ms"] > 0
        waited = record["waiting_ms"] / 1000 / record["seconds_per_step"]
        assert 0 <= record["pairing_share"] <= waited + 1e-9 <= 1
        assert 0 < record["loading_share"] <= waited + 1e-9
        assert 0 < record["batches_per_second"] <= record["batches_needed_per_second"]
        assert not own_threads()


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()} & {"prefetch", "batches"}


class Breaks:
    """A coupling that fails at its fifth call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, data, *, cond=None, generator=None):
        self.calls += 1
        if self.calls == 5:
            raise ArithmeticError("no noise for this one")
        return torch.randn(data.shape, generator=generator)


def test_an_error_of_the_coupling_stops_training_at_its_step_and_leaves_no_thread(tiny, tmp_path):
    trainer = Trainer(tiny, RunDir.open(tmp_path, tiny), device="cpu")
    trainer.coupling = Breaks()
    with pytest.raises(ArithmeticError, match="no noise for this one"):
        trainer.train(quiet=True)
    assert trainer.step == 4
    assert not own_threads()


def test_an_error_of_training_leaves_no_thread(tiny, tmp_path):
    def fail(step, model):
        assert own_threads()
        raise KeyError(step)

    trainer = Trainer(tiny, RunDir.open(tmp_path, tiny), device="cpu")
    with pytest.raises(KeyError):
        trainer.train(evaluate=fail, evaluate_at=(3,), quiet=True)
    assert not own_threads()


# -- image scaling --------------------------------------------------------------------------------


def scaled(recipe: Recipe, factor: float) -> Recipe:
    return dataclasses.replace(recipe, scaling=DataScaling(factor))


def test_everything_before_sampling_sees_scaled_data(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, coupling="knn:k=4,center=mean")
    plain, double = (
        Trainer(part, RunDir.open(tmp_path / str(part.scaling.factor), part), device="cpu")
        for part in (recipe, scaled(recipe, 2.0))
    )
    assert torch.equal(double.validation[0].data, 2 * plain.validation[0].data)
    torch.testing.assert_close(double.coupling.center.mean, 2 * plain.coupling.center.mean)
    with plain.paired_loader() as once, double.paired_loader() as twice:
        assert torch.equal(next(iter(twice)).data, 2 * next(iter(once)).data)


def test_a_model_of_scaled_data_makes_samples_in_the_range_of_the_data(tiny, tmp_path):
    recipe = dataclasses.replace(scaled(tiny, 2.0), steps=300, batch_size=64, validate_every=300, preview_every=0)
    trainer = train(recipe, tmp_path)
    pipeline = load_run(tmp_path, "cpu").with_sampler(SamplerConfig("euler", 10)).pipeline()
    images = torch.cat([part for part, _ in pipeline(trainer.ema.model, 256, seed=0)])
    data = trainer.task.dataset.batch(torch.arange(256)).data
    assert images.std() == pytest.approx(float(data.std()), rel=0.2)
    assert images.mean() == pytest.approx(float(data.mean()), abs=0.2)


def test_scaling_is_recorded_and_a_checkpoint_of_another_is_refused(tiny, tmp_path):
    train(scaled(tiny, 2.0), tmp_path / "two", until=1)
    for name in ("recipe.json", "weights/model.json"):
        record = read_json(tmp_path / "two" / name)
        assert record.get("recipe", record)["scaling"]["factor"] == 2.0
    with pytest.raises(ValueError, match=r"another recipe \(scaling.factor: 2.0 -> 1.0\)"):
        RunDir.open(tmp_path / "two", tiny)
    train(tiny, tmp_path / "one", until=1)
    (tmp_path / "two" / "checkpoint.pt").replace(tmp_path / "one" / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"scaling.factor was 2.0, the recipe has 1.0"):
        train(tiny, tmp_path / "one")


class Numbers(DataSet):
    name, shape = "numbers", ()

    def __len__(self):
        return 96

    def batch(self, indices, generator=None):
        return Batch(indices.float())


@pytest.mark.parametrize(
    ("parts", "world", "micro_batches"), list(itertools.product((1, 2, 4, 6), (1, 2, 3, 4, 6), (1, 2)))
)
def test_ranks_share_the_samples_of_a_step_whatever_their_number(parts, world, micro_batches):
    """Each sample is trained once a step, and with the random numbers of its part."""

    def seen(*place):
        loader = TrainDataLoader(Numbers(), 48, 0, torch.device("cpu"), *place, parts=parts)
        per_step = loader.parts_per_step
        for index, batch in enumerate(islice(loader.starting_at(per_step), per_step), per_step):
            noise = torch.randn(len(batch), generator=loader.streams(index).noise)
            for piece, _, _ in loader.micro_batches(PairedBatch(batch.data, noise), batch.data, None):
                yield from zip(piece.data.tolist(), piece.noise.tolist(), strict=True)

    ranks = [list(seen(rank, world, micro_batches)) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(itertools.chain(*ranks)) == sorted(seen())
