"""One step of what a GPU is to measure, in minutes that are kept.

    sh benchmarks/gpu/prepare.sh 2 9 CIFAR10_FOLDER     # collects what the GPU's machine lacks, prints the command
    python benchmarks/gpu/campaign.py --step 2 --minutes 9 --out OUT
    python benchmarks/gpu/campaign.py --step 1 --minutes 2 --out OUT --only U-Net            # a part of it
    python benchmarks/gpu/campaign.py --step 2 --minutes 5 --out OUT --device cpu --tiny     # does it run?

Steps: 1 tests and cost of the couplings, 2 flow matching on CIFAR-10, 3 DDIM, 4 labels and guidance, 5 pairing over
the data set, 6 training steps of Stable Diffusion, 7 Push-T. A step writes OUT/stepN_TIME.json after each of its
parts, with what is unfinished. Of a comparison a run takes the first seed that docs/results/gpu does not have, or the
rest of it; ``report.py`` makes one page of all runs.
"""

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import product, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from immiscible_diffusion import FlowMatchingPath, PairedLoader, RegressionLoss, parse_coupling
from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet, TextUNet
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.evaluator import EvalResult
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.experiments.compare.collect import collect
from immiscible_diffusion.experiments.compare.plan import TINY, Plan, Trial
from immiscible_diffusion.experiments.compare.sweep import Sweep, SweepRunner
from immiscible_diffusion.experiments.compare.trial import TrialRunner
from immiscible_diffusion.experiments.pilot.time_budget import stop_after
from immiscible_diffusion.metrics import SampleMetrics, square_root
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes.diffusion import cifar10_ddim
from immiscible_diffusion.recipes.flow_matching import cifar10_flow
from immiscible_diffusion.recipes.pusht import pusht_policy
from immiscible_diffusion.training.ema import EMAConfig
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import commit, hardware
from immiscible_diffusion.training.throughput import device_peak, training_flops
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_record, write_record
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.device import peak_memory
from immiscible_diffusion.utils.signals import Interrupted

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent)]
import coupling_gpu  # noqa: E402
from graphed import GraphedTrainer  # noqa: E402

ROOT = HERE.parents[1]
CARRIED = HERE / "carried"  # filled by prepare.sh, ignored by git
CACHE = CARRIED / "cache"  # statistics of the real images
RESULTS = ROOT / "docs" / "results" / "gpu"
SHAPES, BATCHES = ("4,32,32", "3,32,32", "4,64,64", "16,128,128"), (128, 256, 512, 1024)
SAMPLED = 1000  # images at a time: one shape, compiled once
SMALL = UNet(channels=64, blocks=1, init="zero")  # 6 M parameters: half the width and the blocks of the published one
ARMS = ("independent", "assignment", "calibrated:knn:k=16", "knn:k=4", "matched:knn:k=4", "shuffled:knn:k=4")
FAST = {"compile": True, "channels_last": True, "mixed_precision": "bf16", "preview_every": 0}
Weights = tuple[float, ...]
Parts = dict[str, Callable[[], None]]
"""What a step consists of; each part adds its figures to the record."""


class Deadline:
    """Minutes from now on."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 afterwards."""
        return self.end - time.monotonic()

    def check(self) -> None:
        """Raise Interrupted once they are over."""
        if self.left <= 0:
            raise Interrupted(signal.SIGTERM, "the minutes are over")


@dataclass
class Run:
    """One call of this script and its file, which is whole after every part."""

    options: argparse.Namespace
    values: dict[str, Any]
    folder: Path  # for what is not kept
    deadline: Deadline
    file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.file = self.options.out / f"step{self.options.step}_{datetime.now(timezone.utc):%Y%m%dT%H%M%S}.json"

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return torch.device(self.options.device)

    def take(self, parts: Parts) -> None:
        """Run the parts one after the other, no training in less time than the quickest before it took.

        The first, for which data are loaded and code is compiled, says nothing of the others.
        """
        quickest = 0.0
        self.keep(unfinished=list(parts))
        for number, (name, part) in enumerate(parts.items()):
            if self.deadline.left <= quickest:
                return
            began = time.monotonic()
            try:
                with stop_after(self.deadline.left):
                    part()
            except (Interrupted, subprocess.TimeoutExpired):
                return
            except Exception as error:  # noqa: BLE001 - it is written down, and the other parts need not suffer
                traceback.print_exc()
                self.values["failures"][name] = f"{type(error).__name__}: {error}"
            took = self.values["seconds"][name] = time.monotonic() - began
            if self.values["comparison"] and number:
                quickest = min(quickest or math.inf, took)
            self.keep(unfinished=[other for other in self.values["unfinished"] if other != name])

    def keep(self, **values: Any) -> None:
        """Write the record with these ``values``."""
        self.values |= values
        write_record(self.file, self.values)

    def add_table(self, name: str, rows: Callable[[], list[dict[str, Any]]]) -> None:
        """Add a table of ``rows`` to the record."""
        self.values["tables"][name] = rows()


# -- steps 1 and 6: tests and speed ----------------------------------------------------------------


def couplings(run: Run) -> Parts:
    """Tests on CUDA, the couplings' cost by shape and batch, and a training step of the small U-Net."""
    tiny = run.options.tiny
    shapes, batches = (("1,8,8",), (4,)) if tiny else (SHAPES, BATCHES)
    parts: Parts = {f"{shape} B={b}": partial(coupling_cost, run, shape, b) for shape in shapes for b in batches}
    parts["tests on CUDA"] = partial(cuda_tests, run)
    network = (SMALL.tiny() if tiny else SMALL).build((3, 32, 32))
    if not tiny:
        network.compile()
    batch = Batch(torch.randn(8 if tiny else 256, 3, 32, 32))
    rows = partial(training_rows, run, network, batch, ("knn:k=4", "assignment"))
    return parts | {"U-Net": partial(run.add_table, "training steps of the small U-Net, compiled", rows)}


def cuda_tests(run: Run) -> None:
    """Run the tests that are marked so; they are skipped without CUDA."""
    files = [str(f) for f in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in f.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "4", "-m", "cuda", "-p", "no:cacheprovider", *files]
    wide, limit = os.environ | {"COLUMNS": "250"}, max(1, run.deadline.left)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=wide, timeout=limit)
    lines = done.stdout.splitlines() or done.stderr.splitlines()[-1:]
    failures = [{"test": line} for line in lines if line.startswith(("FAILED", "ERROR"))]
    run.values["tables"]["tests on CUDA"] = [{"test": lines[-1]}, *failures]


def coupling_cost(run: Run, shape: str, size: int) -> None:
    """Add the rows of ``benchmarks/coupling_gpu.py``; not compiled, as that takes long."""
    words = ["--shape", shape, "--batches", str(size), "--k", "4,64", "--backend", "none"]
    options = coupling_gpu.parsed([*words, "--repeats", "2" if run.options.tiny else "20"])
    rows = [asdict(row) for row in coupling_gpu.rows(options, run.device)]
    run.values["tables"].setdefault(f"milliseconds of a batch, {shape}", []).extend(rows)


def stable_diffusion(run: Run) -> Parts:
    """Training steps of Stable Diffusion's U-Net, random weights, on latents of 256-pixel images."""
    from diffusers import UNet2DConditionModel

    size, width, options = 64, 768, {}
    if run.options.tiny:
        down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
        size, width, options = 2, 8, {"down_block_types": down, "up_block_types": up, "block_out_channels": (8, 16)}
        options |= {"norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}

    def rows() -> list[dict[str, Any]]:
        unet = UNet2DConditionModel(sample_size=32, cross_attention_dim=width, **options)
        batch = Batch(torch.randn(size, 4, 32, 32), {"text": torch.randn(size, 77, width)})
        return training_rows(run, TextUNet(StableDiffusionUNet(), unet, 4), batch, ("knn:k=64", "assignment"))

    return {"Stable Diffusion": partial(run.add_table, f"Stable Diffusion, B = {size}, 4 x 32 x 32", rows)}


def training_rows(run: Run, network: nn.Module, batch: Batch, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Time training steps in bf16 with every coupling, paired in a thread or, with 0 ahead, in the step itself.

    What pairing adds is a share of the step with independent noise; a thread and the step want Python's lock.
    """
    device, (steps, repeats) = run.device, (2, 1) if run.options.tiny else (20, 3)
    on_cuda = device.type == "cuda"
    network = network.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    one = {name: value[:1] for name, value in (batch.cond or {}).items()}
    flops = len(batch) * training_flops(network, batch.data[:1], torch.zeros(1), one)
    peak, path, loss, rows = device_peak(device, "bf16"), FlowMatchingPath(), RegressionLoss(), []
    for name, ahead in product(("independent", *names), (1, 0)):
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        with PairedLoader(repeat(batch), parse_coupling(name), seed=0, device=device, ahead=ahead) as loader:
            batches, paired = iter(loader), []

            def several(batches: Any = batches, paired: list[float] = paired) -> None:
                for _ in range(steps):
                    each = next(batches)
                    t = path.sample_time(len(each.data), generator=each.rng.time)
                    with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda):
                        losses = loss(network, path, each.data, each.noise, t, each.cond, each.mask)
                    losses.mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    if each.pairing_seconds is not None:
                        paired.append(1e3 * each.pairing_seconds)

            step = coupling_gpu.milliseconds(several, device, repeats) / steps
        rows.append(
            {
                "coupling": name,
                "ahead": ahead,
                "step, ms": step,
                "steps/s": 1e3 / step,
                "of peak": None if peak is None else flops / step / peak * 1e3,
                "pairing, ms": sum(paired) / len(paired),
                "added to a step": step / rows[1 - ahead]["step, ms"] - 1 if len(rows) > 1 else 0.0,
                "memory, GiB": peak_memory(device) / 2**30,
            }
        )
    return rows


# -- steps 2 to 5 and 7: comparisons ---------------------------------------------------------------


def images(recipe: Recipe, name: str, sampling_steps: tuple[int, ...], **changes: Any) -> Recipe:
    """Return ``recipe`` at the size of minutes: 6 M parameters, 4,000 steps, evaluated at a third of them as well.

    Steps, samples and rate are to stay as they are: seeds of several runs add up only if they are equal.
    """
    features = "efficientnet" if find_spec("efficientnet_lite_pytorch") else "classifier"
    evaluation = ImageEvalConfig(features=features, samples=5000, sampling_steps=sampling_steps, steps=(1500,))
    steps, often = 4000, {"validate_every": 4000, "checkpoint_every": 4000, "checkpoints_total_limit": 1}
    return replace(
        recipe,
        name=name,
        task=recipe.task.replace(data=DataConfig("cifar10", str(CARRIED / "cifar10"), flip=True), eval=evaluation),
        model=replace(SMALL, init=recipe.model.init),
        optim=replace(recipe.optim, lr=4e-4, warmup_steps=500, fused=True),
        ema=EMAConfig(warmup=True),
        steps=steps,
        **FAST | often | changes,
    )


def flow() -> Recipe:
    """Return flow matching on CIFAR-10."""
    return images(cifar10_flow(), "gpu-flow", (5, 20, 100))


def ddim() -> Recipe:
    """Return DDIM on CIFAR-10."""
    return images(cifar10_ddim(), "gpu-ddim", (5, 20, 100))


def guided() -> Recipe:
    """Return flow matching with labels, one in ten of them dropped."""
    return images(cifar10_flow(), "gpu-guided", (10, 50), conditional=True, cond_drop_prob=0.1)


def policy() -> Recipe:
    """Return the full recipe of Push-T, 8,000 of its steps; scored in the simulator where that is installed."""
    recipe = pusht_policy()
    episodes = 50 if find_spec("gym_pusht") else 0
    return replace(
        recipe,
        name="gpu-pusht",
        task=recipe.task.replace(
            data=replace(recipe.task.data, path=str(CARRIED / "pusht.npz")),
            eval=replace(recipe.task.eval, steps=(4000,), episodes=episodes),
        ),
        optim=replace(recipe.optim, fused=True),
        steps=8000,
        checkpoint_every=8000,
        **FAST | {"channels_last": False},
    )


@dataclass(frozen=True)
class Distances(ImageEvaluator):
    """The Frechet distance alone, of images sampled in bf16, computed where these are."""

    deadline: Deadline = field(default_factory=lambda: Deadline(60))

    def __call__(self, pipeline: Any, model: nn.Module, *, seed: int, final: bool = True, **when: Any) -> EvalResult:
        """Score generated images; Interrupted once the minutes are over."""
        self.deadline.check()
        kind = torch.device(pipeline.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            return super().__call__(replace(pipeline, batch_size=SAMPLED), model, seed=seed, final=False)

    def measure(self, batches: Iterator[Tensor], metrics: Any = ("frechet",), **options: Any) -> SampleMetrics:
        """Return the distance of ``frechet_distance``: on a CPU of many cores that takes seconds, on a GPU tenths."""
        features = torch.cat([self.extractor(batch.clamp(-1, 1)) for batch in batches]).double()
        if not bool(features.isfinite().all()):
            raise ValueError("the samples are not finite")
        real, root, generated = self.reference.statistics, self.root.to(features), features.T.cov()
        overlap = torch.linalg.eigvalsh(root @ generated @ root).clamp(min=0).sqrt().sum()
        apart = (features.mean(dim=0) - real.mean.to(features)).square().sum()
        distance = apart + root.square().sum() + generated.trace() - 2 * overlap
        return SampleMetrics(len(features), self.extractor.name, max(0.0, float(distance)))

    @cached_property
    def root(self) -> Tensor:
        """Square root of the covariance of the real images, the same in every evaluation."""
        return square_root(self.reference.statistics.covariance)


def comparison(make: Callable[[], Recipe], arms: tuple[str, ...], run: Run, *, weights: Weights = ()) -> Parts:
    """The arms that the first seed which is not complete has left."""
    recipe = make()
    if run.options.tiny:
        recipe = tiny(recipe, run.folder)
    known = replace(recipe, task=recipe.task.replace(data=replace(recipe.task.data, path=None))).to_dict()
    done = {pair for values in earlier(run.options) if values["recipe"] == known for pair in finished(values)}
    seed = next(seed for seed in range(10_000) if any((arm, seed) not in done for arm in arms))
    run.values["recipe"], run.values["comparison"] = known, {}
    if recipe.task.makes_images and recipe.task.eval.features == "classifier":
        print("distances of a classifier's features: EfficientNet's weights are not installed", file=sys.stderr)
    plan = Plan(run.folder, recipe, arms, (seed,))
    runner = TrialRunner(plan, run.options.device, trainer=GraphedTrainer if recipe.task.makes_images else Trainer)
    if isinstance(runner.evaluator, ImageEvaluator):
        runner.__dict__["evaluator"] = Distances(**vars(runner.evaluator), deadline=run.deadline)

    def train(trial: Trial) -> None:
        runner(trial)
        if weights:
            SweepRunner(runner, Sweep(guidances=weights))(trial)
        found = collect(plan, run.values["command"], irreducible=False, runner=runner)
        trials = tuple(replace(each, grids=None, trajectory=None) for each in found.trials if each.finished)
        run.values["comparison"] = replace(found, trials=trials, policies=(), video=None).to_dict()

    left = [trial for trial in plan.trials if (trial.coupling, seed) not in done and not trial.is_matched]
    return {str(trial): partial(train, trial) for trial in left}


def prepare() -> None:
    """Score the real images and halves of them, the same in steps 2 to 5; minutes, unless it was done here before.

    prepare.sh calls this.
    """
    recipe = flow()
    evaluator = recipe.task.build(recipe, torch.device("cpu")).evaluator()
    print(evaluator.floor(recipe.task.eval.samples).note)
    CACHE.mkdir(exist_ok=True)
    shutil.copy(evaluator.reference.file.path, CACHE)


def tiny(recipe: Recipe, folder: Path) -> Recipe:
    """Return ``recipe`` as a smoke run on data that are at hand."""
    data = recipe.task.data
    if isinstance(data, DataConfig):
        data, evaluation = DataConfig("digits", flip=data.flip), replace(recipe.task.eval, features="classifier")
    else:
        generator, ends = np.random.default_rng(0), 40 * np.arange(1, 5)
        walks = {name: generator.uniform(100, 400, (160, *shape)) for name, shape in PUSHT_ARRAYS.items()}
        np.savez(folder / "pusht.npz", episode_ends=ends, **walks)
        data, evaluation = replace(data, path=str(folder / "pusht.npz")), replace(recipe.task.eval, workers=0)
    recipe = replace(recipe, task=recipe.task.replace(data=data, eval=evaluation)).tiny()
    return replace(recipe, name=f"{recipe.name}{TINY}")


PUSHT_ARRAYS = {"action": (2,), "state": (5,), "keypoint": (9, 2)}


def earlier(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the records of earlier comparisons, those in OUT among them."""
    files = {file for folder in (options.results, options.out) for file in folder.glob("step*.json")}
    return [values for values in map(read_record, sorted(files)) if values.get("comparison")]


def finished(values: dict[str, Any]) -> set[tuple[str, int]]:
    """Return coupling and seed of the trials that a record has."""
    return {(trial["coupling"], trial["seed"]) for trial in values["comparison"]["trials"]}


STEPS: dict[int, Callable[[Run], Parts]] = {
    1: couplings,
    2: partial(comparison, flow, ARMS),
    3: partial(comparison, ddim, ARMS),
    4: partial(comparison, guided, ("independent", "assignment"), weights=(1.5, 2.0, 3.0)),
    5: partial(comparison, flow, ("independent", "semidiscrete", "aligned(beta=5):assignment")),
    6: stable_diffusion,
    7: partial(comparison, policy, ("independent", "knn:k=2", "matched:knn:k=2")),
}


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", type=int, choices=STEPS, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="after which no part begins or continues")
    parser.add_argument("--only", default="", help="parts whose names have this: U-Net, tests, B=128, a coupling")
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of earlier records (docs/results/gpu)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks and data of a moment: does it run?")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    from report import page

    options = parsed(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here; --device cpu --tiny tries the same on the CPU", file=sys.stderr)
        return 2
    if CACHE.exists():
        os.environ.setdefault("IMMISCIBLE_CACHE", str(CACHE))
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.automatic_dynamic_shapes = False  # validated, sampled: a few sizes, each compiled for itself
    device, of_tree = torch.device(options.device), CARRIED / "commit"
    values = {
        "step": options.step,
        "commit": of_tree.read_text().strip() if of_tree.exists() else commit(),
        "card": hardware(device),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"python benchmarks/gpu/campaign.py --step {options.step} --minutes {options.minutes:g}"
        + f" --only {options.only!r}" * bool(options.only)
        + " --tiny" * options.tiny,
        "unfinished": [],
        "failures": {},
        "seconds": {},  # of every part
        "tables": {},
        "recipe": None,
        "comparison": None,
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Run(options, values, Path(folder), Deadline(options.minutes))
        parts = STEPS[options.step](run)
        chosen = {name: part for name, part in parts.items() if options.only in name}
        if parts and not chosen:
            print(f"no part has {options.only!r} in its name; there are: {'; '.join(parts)}", file=sys.stderr)
            return 2
        run.take(chosen)
    print(page([values]))
    if values["unfinished"]:
        print(f"unfinished after {options.minutes:g} minutes: {'; '.join(values['unfinished'])}")
    for name, error in values["failures"].items():
        print(f"failed: {name}: {error}")
    return 1 if values["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
