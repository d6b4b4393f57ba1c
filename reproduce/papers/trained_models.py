"""The papers' tests of a trained model, on a run folder: stability, and prediction by layer."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.analysis.cache import slug
from immiscible_diffusion.analysis.noise_density import density_of, has_closed_form
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.diffusion.samplers import SamplerConfig, start_noise
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.experiments.compare.excess_loss import images_at, row_count
from immiscible_diffusion.training.builders import make_coupling
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.random import keyed_generator
from reproduce.papers.denoising_trajectory import STEPS, Layers, predict_layers, prediction
from reproduce.papers.perturbation import PerturbationTest, Stability
from reproduce.papers.published_figures import P1, P2
from reproduce.papers.table import Row, Section

NOISES, PER_CLASS = 256, 8
MOST_DATA, LEAST_PIXELS = 10_000, 32
LAYERS_SHOWN = (0, 1, 4, 9, 14, 19)
Progress = Callable[[int, int], None]


def examine(
    run: RunDir | str | os.PathLike[str],
    *,
    device: str = "auto",
    folder: Path | None = None,
    noises: int = NOISES,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Perturb the noise of a trained run's images, and look at its predictions by layer.

    Args:
        run: the run, or its folder.
        device: auto, cpu, cuda or mps.
        folder: pictures go to ``folder/pictures``, and the sections name them from ``folder``.
        noises: for the layers; a quarter of them for the perturbations.
        seed: of all noise.
        progress: called with the parts done and all.

    Returns:
        Sections, as ``Section.to_json`` has them; started from N(0, I) and, where the run's sampler
        does so, from the law of the noise that it was trained on.

    Raises:
        ValueError: no run there, or it has no weights yet.
    """
    found = run if isinstance(run, RunDir) else RunDir.existing(run)
    if not found.recipe().in_pixels:
        raise ValueError("the papers' tests of a trained model are of pixels; this run has latents")
    trained = LoadedRun.load(found, device)
    usual = trained.recipe.sampler
    starts: list[Literal["normal", "matched"]] = ["normal"]
    starts += ["matched"] if usual.init_noise == "matched" else []
    parts: list[Callable[[], Section]] = []
    for start in starts:
        sampler = dataclasses.replace(usual, init_noise=start)
        one = _Examined(trained, sampler, trained.generator(sampler), noises, seed, folder)
        parts += [partial(one.stability), partial(one.layers)]
    sections = []
    for number, part in enumerate(parts, start=1):
        sections.append(part().to_json())
        if progress is not None:
            progress(number, len(parts))
    return sections


@dataclass(frozen=True)
class _Examined:
    """A trained model and where sampling starts."""

    trained: LoadedRun
    sampler: SamplerConfig
    generator: Generator
    noises: int
    seed: int
    folder: Path | None

    @property
    def name(self) -> str:
        start = ", matched start" if self.sampler.init_noise == "matched" else ""
        return f"{self.trained.recipe.name}, {self.trained.recipe.coupling}{start}"

    def labels(self, count: int) -> Tensor | None:
        """``[count]`` for a conditional model: of the first classes, a few noises of each."""
        classes = self.trained.dataset.num_classes
        if not self.trained.recipe.conditional or not classes:
            return None
        rows = torch.arange(count, device=self.trained.device)
        return rows % min(classes, max(1, count // PER_CLASS))

    def cond(self, count: int) -> Cond | None:
        """The same as the network takes it."""
        labels = self.labels(count)
        return None if labels is None else {"label": labels}

    def started(self, noise: Tensor) -> Tensor:
        """What sampling starts from, given N(0, I) ``noise`` ``[B, *shape]``."""
        law = self.generator.law
        if self.sampler.init_noise == "normal" or law is None:
            return noise
        return law.color(noise, self.labels(len(noise)))

    def make(self, noise: Tensor) -> Tensor:
        """Images ``[B, *shape]`` in the range of the data set, as ``self.generator`` makes them.

        A sampler that adds noise on its way adds the same at every call.
        """
        recipe, rows = self.trained.recipe, range(len(noise))
        shape, device = self.trained.dataset.shape, self.trained.device
        sampler = self.generator.of_scaled_data(self.sampler)
        sampled = sampler.sample(
            recipe.noise_path,
            self.generator.guided(self.trained.model, sampler),
            self.started(noise),
            cond=self.cond(len(noise)),
            step_noise=lambda step: start_noise(self.seed, rows, shape, device, step),
        )
        return recipe.scaling.undo(sampled.data)

    def stability(self) -> Section:
        """The perturbation test, not renormalized and renormalized."""
        rows, pictures, noises = [], [], max(2, self.noises // 4)
        for renormalize in (False, True):
            test = PerturbationTest(noises=noises, renormalize=renormalize, seed=self.seed)
            shape = self.trained.dataset.shape
            found = test(self.make, shape, device=self.trained.device)
            rows += list(_stability_rows(found))
            if not renormalize:
                caption = "left: of the noise N; then of N + W P, three each of W = 10, 20, 30 %"
                pictures = self._picture("stability", *found.grid(), caption)
        note = (
            f"Images of {noises} noises N and of N + W P, ten P each, sampled by {self.sampler}. "
            f"Change: mean squared change of the image in units of that between images of "
            f"different noises. Own: share of images that are nearest to their own original. "
            f"Expected: for images linear in the noise, and by chance. The paper tested a model "
            f"trained without pairing and judged by eye (10 %: almost identical, 20 %: background, "
            f"30 %: a few objects); whether it renormalized is not published: both."
        )
        if self.labels(noises) is not None:
            note += (
                " Every noise keeps its label, so images of different noises differ by label too."
            )
        title = f"Stability against perturbed noise, {self.name}"
        return Section(title, f"Fig. 3 of {P2}", tuple(rows), note, tuple(pictures))

    def layers(self) -> Section:
        """The predicted image at every step of 20, of the model and of the best there can be."""
        recipe, labels = self.trained.recipe, self.labels(self.noises)
        generator = keyed_generator(self.seed, "layers")
        noise = torch.randn(self.noises, *self.trained.dataset.shape, generator=generator)
        noise = self.started(noise.to(self.trained.device))
        images = self._data()
        predict = prediction(recipe.noise_path, self.trained.model, self.cond(self.noises))
        found = predict_layers(
            predict,
            recipe.noise_path,
            noise,
            images.data,
            shown=3,
            groups=labels,
            data_groups=None if labels is None else (images.cond or {})["label"],
        )
        best = self._best(images, noise, labels is not None)
        shown = torch.cat([found.strip(sample) for sample in range(found.x_t.shape[1])])
        caption = (
            f"three samples, each two rows: the point from pure noise (left) to the end, and the "
            f"image predicted there, at {min(10, STEPS)} of {STEPS} steps"
        )
        pictures = self._picture("layers", recipe.scaling.undo(shown), min(10, STEPS), caption)
        note = (
            f"At each of {STEPS} equal steps of sampling the image that the model predicts. "
            f"Spread: standard deviation of predicted images over {self.noises} noises in units of "
            f"that of the data; at pure noise a model that cannot tell images apart has 0. Offset: "
            f"distance of the mean prediction from the mean of the data, in the same units. "
            f"Expected: of the best denoiser there can be for these data and this coupling, at "
            f"the same points. The paper showed pictures of DDIM on CIFAR-10, no numbers."
        )
        if self.sampler.guidance != 1:
            note += " The predictions are those of the model itself, without guidance."
        title = f"Prediction layer by layer, {self.name}"
        rows = tuple(_layer_rows(found, best))
        return Section(title, f"Fig. 3 of {P1}", rows, note, tuple(pictures))

    def _data(self) -> Batch:
        """Up to ten thousand data as the network sees them, mirrored where training mirrors."""
        recipe, dataset = self.trained.recipe, self.trained.dataset
        generator = keyed_generator(self.seed, "data")
        rows = torch.randperm(row_count(recipe, dataset), generator=generator)[:MOST_DATA]
        return images_at(recipe, dataset, rows)

    def _best(self, images: Batch, noise: Tensor, conditional: bool) -> Layers | None:
        """One step of the exact denoiser at pure noise; None where there is no closed form."""
        trained = self.trained
        coupling = make_coupling(trained.recipe, trained.dataset, trained.run, torch.device("cpu"))
        if conditional or not has_closed_form(coupling):
            return None
        best = OptimalDenoiser(images, density_of(coupling), trained.recipe.noise_path)
        return predict_layers(best, trained.recipe.noise_path, noise.cpu(), images.data, steps=1)

    def _picture(
        self, what: str, images: Tensor, columns: int, caption: str
    ) -> list[tuple[str, str]]:
        """Written to the folder, if there is one and these are pictures."""
        if self.folder is None or images.ndim != 4 or images.shape[1] not in (1, 3):
            return []
        file = Path("pictures") / f"{what}_{slug(self.name)}.png"
        larger = max(1, -(-LEAST_PIXELS // images.shape[-1]))
        images = images.repeat_interleave(larger, -1).repeat_interleave(larger, -2)
        with atomic_path(self.folder / file) as temporary:
            image_grid(images, columns).save(temporary, format="PNG")
        return [(file.as_posix(), caption)]


def _stability_rows(found: Stability) -> Iterator[Row]:
    word = "renormalized" if found.renormalized else "as it is"
    for one in found.weights:
        size = 1 + one.weight**2
        # |A ((N + W P) / s - N)|^2 for linear A, in units of |A (N - N')|^2.
        linear = one.weight**2 / 2
        if found.renormalized:
            linear = ((size**-0.5 - 1) ** 2 + one.weight**2 / size) / 2
        yield Row(f"W = {100 * one.weight:.0f} %, {word}: change", one.change, expected=linear)
        chance = 1 / found.noises
        yield Row(f"W = {100 * one.weight:.0f} %, {word}: own", one.own, expected=chance)


def _layer_rows(found: Layers, best: Layers | None) -> Iterator[Row]:
    for index in LAYERS_SHOWN:
        if index < len(found.layers):
            layer = found.layers[index]
            exact = best.layers[0] if best is not None and index == 0 else None
            place = f"t = {layer.t:.2f}" + (" (pure noise)" if index == 0 else "")
            spread, offset = (exact.spread.value, exact.offset.value) if exact else (None, None)
            yield Row(f"{place}: spread", layer.spread, expected=spread)
            yield Row(f"{place}: offset", layer.offset, expected=offset)
