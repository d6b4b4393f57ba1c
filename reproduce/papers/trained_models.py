"""The papers' tests of a trained run: perturbed start noise, and the predictions step by step."""

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

import immiscible_diffusion.recipes  # noqa: F401 (tasks and networks that a run may name)
from immiscible_diffusion.analysis.noise_density import density_of, has_closed_form
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import guided, start_noise
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.experiments.compare.excess_loss import images_at
from immiscible_diffusion.training.builders import Run, build_coupling
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.random import keyed_generator
from reproduce.papers.denoising_trajectory import STEPS, data_prediction, denoising_trajectory
from reproduce.papers.perturbation import perturbation_test
from reproduce.papers.published_figures import P1, P2
from reproduce.papers.table import Row, Section

NOISES, NOISES_PER_CLASS = 256, 8
MOST_DATA, LEAST_PIXELS, SHOWN = 10_000, 32, 10
STEPS_IN_TABLE = (0, 1, 4, 9, 14, 19)


def run_paper_tests(
    run: RunDir | str | os.PathLike[str],
    *,
    device: str = "auto",
    folder: Path | None = None,
    noises: int = NOISES,
    seed: int = 0,
    allow_code: bool = False,
) -> Iterator[Section]:
    """Perturb the start noise of a trained run, and compare its predictions step by step.

    Args:
        run: the run, or its folder.
        device: auto, cpu, cuda or mps.
        folder: images go to ``folder/images``, and the sections name them from ``folder``.
        noises: for the predictions; a quarter of them for the perturbations.
        seed: of all noise.
        allow_code: import the coupling that the run's recipe names, if it is not one of ours.

    Yields:
        Two sections, sampling from N(0, I); and two more where the run's sampler starts from the
        distribution of the noise that it was trained on.

    Raises:
        ValueError: no run there, it has no weights yet, or it is not of pixels.
    """
    run_dir = run if isinstance(run, RunDir) else RunDir.existing(run)
    if not run_dir.recipe().task.diffuses_data_set:
        raise ValueError(f"the papers' tests are of images, and {run_dir.root} diffuses others")
    trained = load_run(run_dir, device, allow_code=allow_code)
    usual = trained.recipe.sampler
    starts: list[Literal["normal", "matched"]] = ["normal"]
    if usual.init_noise == "matched":
        starts.append("matched")
    for start in starts:
        sampler = dataclasses.replace(usual, init_noise=start)
        model = TrainedModel(trained.with_sampler(sampler), seed)
        name = f"{trained.recipe.name}, {trained.recipe.coupling}"
        name += ", matched start" if start == "matched" else ""
        stem = re.sub(r"[^\w.=-]+", "-", f"{run_dir.root}_{start}").strip("-")
        yield perturbation_section(model, name, max(2, noises // 4), folder, stem)
        yield trajectory_section(model, name, noises, folder, stem)


@dataclass(frozen=True)
class TrainedModel:
    """What the tests need of a trained run: the one place that asks the package."""

    run: Run
    seed: int

    @cached_property
    def pipeline(self) -> SamplingPipeline:
        """The run's, with guidance and the scaled clip."""
        return self.run.pipeline()

    def cond(self, count: int) -> Cond | None:
        """Labels ``[count]`` for a conditional model: of the first classes, a few of each."""
        classes = self.run.task.dataset.num_classes
        if not self.run.recipe.conditional or not classes:
            return None
        rows = torch.arange(count, device=self.run.device)
        return {"label": rows % min(classes, max(1, count // NOISES_PER_CLASS))}

    def init_noise(self, noise: Tensor) -> Tensor:
        """The start of sampling, given N(0, I) ``noise`` ``[B, *shape]``."""
        distribution, noise = self.pipeline.init_noise, noise.to(self.run.device)
        if distribution is None:
            return noise
        return distribution.color(noise, (self.cond(len(noise)) or {}).get("label"))

    def sample(self, noise: Tensor) -> Tensor:
        """Images ``[B, *shape]`` in the range of the data set, as ``immiscible sample`` makes them.

        A sampler that adds noise on its way adds the same at every call.
        """
        pipeline, rows = self.pipeline, range(len(noise))
        sampled = pipeline.sampler.sample(
            pipeline.path,
            guided(self.run.model, pipeline.sampler.guidance, pipeline.unconditional),
            self.init_noise(noise),
            cond=self.cond(len(noise)),
            step_noise=partial(start_noise, self.seed, rows, pipeline.shape, pipeline.device),
        )
        return pipeline.decode(sampled.data)

    def data(self) -> Batch:
        """Up to ten thousand data as the network sees them, mirrored where training mirrors."""
        recipe, dataset = self.run.recipe, self.run.task.dataset
        generator = keyed_generator(self.seed, "data")
        rows = torch.randperm(dataset.index_count, generator=generator)[:MOST_DATA]
        return images_at(recipe, dataset, rows)

    def optimal_denoiser(self, data: Batch) -> OptimalDenoiser | None:
        """The best there can be for ``data``; None where there is no closed form."""
        run, cpu = self.run, torch.device("cpu")
        coupling = build_coupling(run.recipe, run.task, run.run_dir, cpu, allow_code=run.allow_code)
        if run.recipe.conditional or not has_closed_form(coupling):
            return None
        return OptimalDenoiser(data, density_of(coupling), run.recipe.noise_path)


def perturbation_section(model: TrainedModel, name: str, noises: int, folder: Path | None, stem: str) -> Section:
    """The perturbation test, not renormalized and renormalized."""
    rows, images = [], []
    for word in ("", ", renormalized"):
        originals, results = perturbation_test(
            model.sample,
            model.pipeline.shape,
            noises=noises,
            renormalize=bool(word),
            seed=model.seed,
            device=model.run.device,
        )
        for each in results:
            label = f"W = {100 * each.weight:.0f} %{word}"
            rows.append(Row(f"{label}: change", each.change, expected=each.linear))
            rows.append(Row(f"{label}: own", each.own, expected=1 / noises))
        if not word:
            caption = "left: of the noise N; then of N + W P, three each of W = 10, 20, 30 %"
            shown = [originals[:8, None], *(each.images[:8, :3] for each in results)]
            images = write_grid(torch.cat(shown, dim=1), caption, folder, f"perturbation_{stem}")
    note = (
        f"Images of {noises} noises N and of N + W P, ten P each, sampled by "
        f"{model.run.recipe.sampler}. "
        f"Change: mean squared change of the image in units of that between images of different "
        f"noises. Own: share of images that are nearest to their own original. Expected: for "
        f"images linear in the noise, and by chance. The paper tested a model trained without "
        f"pairing and compared by eye (10 %: almost identical, 20 %: background, 30 %: a few "
        f"objects); whether it renormalized is not published: both."
    )
    if model.cond(noises) is not None:
        note += " Every noise keeps its label, so images of different noises differ by label too."
    return Section(f"Perturbed noise, {name}", f"Fig. 3 of {P2}", rows, note, images)


def trajectory_section(model: TrainedModel, name: str, noises: int, folder: Path | None, stem: str) -> Section:
    """The predicted image at every step of 20, of the model and of the best there can be."""
    recipe, cond, data = model.run.recipe, model.cond(noises), model.data()
    generator = keyed_generator(model.seed, "layers")
    noise = model.init_noise(torch.randn(noises, *model.pipeline.shape, generator=generator))
    predict, best = data_prediction(recipe.noise_path, model.run.model, cond), {}
    result = denoising_trajectory(
        predict,
        recipe.noise_path,
        noise,
        data.data,
        groups=cond["label"] if cond else None,
        data_groups=data.cond["label"] if cond and data.cond else None,
    )
    if optimal := model.optimal_denoiser(data):
        exact = denoising_trajectory(optimal, recipe.noise_path, noise.cpu(), data.data, steps=1)
        best = {0: exact.steps[0]}
    rows = []
    for index in STEPS_IN_TABLE:
        step, exact_step = result.steps[index], best.get(index)
        label = f"t = {step.t:.2f}" + (" (pure noise)" if index == 0 else "")
        spread, offset = (exact_step.spread, exact_step.offset) if exact_step else (None, None)
        rows.append(Row(f"{label}: spread", step.spread, expected=spread and spread.value))
        rows.append(Row(f"{label}: offset", step.offset, expected=offset and offset.value))
    at = torch.linspace(0, STEPS - 1, SHOWN).round().long()
    strips = torch.stack([result.x_t[at, :3], result.predicted[at, :3]], dim=1)
    caption = (
        f"three samples, each two rows: the point from pure noise (left) to the end, and the "
        f"image predicted there, at {SHOWN} of {STEPS} steps"
    )
    grid = recipe.scaling.undo(strips.permute(2, 1, 0, *range(3, strips.ndim)).flatten(0, 1))
    images = write_grid(grid, caption, folder, f"trajectory_{stem}")
    note = (
        f"At each of {STEPS} equal steps of sampling the image that the model predicts. Spread: "
        f"standard deviation of predicted images over {noises} noises in units of that of the "
        f"data; at pure noise a model that cannot tell images apart has 0. Offset: distance of "
        f"the mean prediction from the mean of the data, in the same units. Expected: of the best "
        f"denoiser there can be for these data and this coupling, at the same points. The paper "
        f"showed images of DDIM on CIFAR-10, no numbers."
    )
    if model.run.recipe.sampler.guidance != 1:
        note += " The predictions are those of the model itself, without guidance."
    return Section(f"Predictions by step, {name}", f"Fig. 3 of {P1}", rows, note, images)


def write_grid(images: Tensor, caption: str, folder: Path | None, stem: str) -> list[tuple[str, str]]:
    """``images`` ``[rows, columns, C, H, W]`` as a PNG with its caption, if there is a folder."""
    if folder is None or images.ndim != 5 or images.shape[2] not in (1, 3):
        return []
    larger = max(1, -(-LEAST_PIXELS // images.shape[-1]))
    pixels = images.flatten(0, 1).repeat_interleave(larger, -1).repeat_interleave(larger, -2)
    file = Path("images") / f"{stem}.png"
    with atomic_path(folder / file) as temporary:
        image_grid(pixels, images.shape[1]).save(temporary, format="PNG")
    return [(file.as_posix(), caption)]
