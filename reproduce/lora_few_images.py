"""Whether pairing helps adapters that are trained on a few images: couplings over seeds.

    python -m reproduce.lora_few_images runs/small/independent runs/small/twenty \
        --out runs/lora-few --prompt "a sks airplane" --steps 300 --size 32 --lr 1e-3 --prediction v

PIPELINE is a folder (or a name on the hub) that diffusers loads, IMAGES a folder of images with
captions. Batch 1, the recipe ``sd-lora``, equal steps; samples start from the same N(0, I) for all
couplings, as every interface starts. Writes figures.json, report.md and strips.png; what is done is
not done again.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.metrics.features import extractor_from_name
from immiscible_diffusion.metrics.few_shot import FewShotMetrics, few_shot_metrics
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_json, write_json, write_text
from immiscible_diffusion.utils.images import image_grid
from immiscible_diffusion.utils.progress import Progress
from immiscible_diffusion.utils.statistics import mean_interval

BASELINE, SHOWN, SAMPLE_SEED = "independent", 8, 0
FIGURES = [field.name for field in dataclasses.fields(FewShotMetrics)]


def recipe_of(options: argparse.Namespace, coupling: str, seed: int) -> Recipe:
    """``sd-lora`` on these images."""
    recipe = recipe_from_name("sd-lora")
    task: Any = recipe.task
    model: Any = recipe.model
    return dataclasses.replace(
        recipe,
        task=task.replace(
            data=DataConfig("folder", path=str(options.images), size=options.size, channels=3),
            codec=dataclasses.replace(task.codec, pretrained=options.pipeline),
            buckets=Buckets(size=options.size, step=min(64, options.size)),
        ),
        path=dataclasses.replace(recipe.path, prediction=options.prediction),  # type: ignore[call-arg]
        model=dataclasses.replace(model, gradient_checkpointing=False),
        optim=dataclasses.replace(recipe.optim, lr=options.lr, warmup_steps=options.steps // 10),
        coupling=coupling,
        seed=seed,
        steps=options.steps,
        mixed_precision=options.mixed_precision,
        sampler=dataclasses.replace(recipe.sampler, steps=20, guidance=options.guidance),
        preview_every=0,
        validate_every=options.steps,
        checkpoint_every=options.steps,
    )


def tune(options: argparse.Namespace, recipe: Recipe, extractor: Any, real: torch.Tensor) -> Any:
    """Metrics at every step asked for, of one training; also the first samples as a row."""
    name = recipe.coupling.replace(":", "-").replace("=", "")
    folder = options.out / f"{name}-seed{recipe.seed}"
    done = folder / "few.json"
    if done.is_file():
        return read_json(done)
    trainer = Trainer(recipe, RunDir.open(folder, recipe), device=options.device)
    at = tuple(round(recipe.steps * share) for share in (1 / 3, 2 / 3, 1))
    found = {}

    def evaluate(step: int, model: nn.Module) -> None:
        pipeline = trainer.run.pipeline(prompts=(options.prompt,))
        batches = pipeline(model, options.samples, seed=SAMPLE_SEED)
        samples = torch.cat([images for images, _ in batches]).cpu()
        found[str(step)] = dataclasses.asdict(few_shot_metrics(extractor, samples, real))
        image_grid(samples[:SHOWN], SHOWN).save(strip_of(folder, step))

    if recipe.seed == options.seeds[0]:
        evaluate(0, trainer.ema.model)
    trainer.train(evaluate=evaluate, evaluate_at=at, quiet=True)
    write_json(done, found)
    return found


def strip_of(folder: Path, step: int) -> Path:
    """Where the first samples of a training at ``step`` are kept, beside its folder."""
    return folder.with_name(f"{folder.name}-step{step:06d}.png")


def table(figures: dict[str, list[Any]], step: str) -> list[str]:
    """Means of the baseline, and of the others their difference from it, paired by seed."""
    lines = [f"| coupling | {' | '.join(FIGURES)} |", "|---|" + "--:|" * len(FIGURES)]
    base = figures[BASELINE]
    for coupling, runs in figures.items():
        cells = []
        for name in FIGURES:
            values = [run[step][name] for run in runs]
            if coupling != BASELINE:
                values = [v - b[step][name] for v, b in zip(values, base, strict=True)]
            mean, sign = mean_interval(values), "" if coupling == BASELINE else "+"
            ends = f" ({mean.low:{sign}.3f} to {mean.high:{sign}.3f})" if mean.is_known else ""
            cells.append(f"{mean.value:{sign}.3f}{ends}")
        label = coupling if coupling == BASELINE else f"{coupling}, less {BASELINE}"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def strips(options: argparse.Namespace, steps: list[str]) -> None:
    """The first samples of seed 0: a row for each coupling and step, of the same noise."""
    from PIL import Image, ImageDraw

    rows = []
    for coupling in options.couplings:
        name = coupling.replace(":", "-").replace("=", "")
        for step in steps:
            path = strip_of(options.out / f"{name}-seed{options.seeds[0]}", int(step))
            rows += [(f"{coupling}, step {step}", Image.open(path))] if path.is_file() else []
    scale = max(1, 64 // options.size)
    size = (rows[0][1].width * scale, rows[0][1].height * scale)
    sheet = Image.new("RGB", (180 + size[0], len(rows) * (size[1] + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (label, image) in enumerate(rows):
        top = number * (size[1] + 4)
        pen.text((4, top + size[1] // 2 - 6), label, fill="black", font_size=12)
        sheet.paste(image.resize(size, Image.Resampling.NEAREST), (180, top))
    sheet.save(options.out / "strips.png", optimize=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline")
    parser.add_argument("images", type=Path)
    parser.add_argument("--prompt", required=True, help="what samples show")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--couplings", nargs="+", default=[BASELINE, "knn:k=2", "knn:k=8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--prediction", default="epsilon", choices=("epsilon", "v"))
    parser.add_argument("--mixed_precision", default="no", choices=("no", "fp16", "bf16"))
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--features", default="efficientnet", help="what the figures compare")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    options = parser.parse_args()
    if BASELINE not in options.couplings:
        parser.error(f"couplings are compared with {BASELINE}; add it")
    return options


def main() -> int:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    config = DataConfig("folder", path=str(options.images), size=options.size, channels=3)
    dataset = load_images(config)
    real = dataset.batch(torch.arange(len(dataset))).data
    extractor = extractor_from_name(options.features, dataset, seed=0, device="cpu")
    figures: dict[str, list[Any]] = {coupling: [] for coupling in options.couplings}
    with Progress(len(options.seeds) * len(figures), 0, "LoRA", unit="training") as show:
        for seed in options.seeds:
            for number, (coupling, runs) in enumerate(figures.items()):
                runs.append(tune(options, recipe_of(options, coupling, seed), extractor, real))
                show.update(options.seeds.index(seed) * len(figures) + number + 1)
    write_json(options.out / "figures.json", figures)
    steps = list(figures[BASELINE][-1])
    lines = []
    for step in steps:
        lines += [f"Step {step}:", "", *table(figures, step), ""]
    before = figures[BASELINE][0].get("0")
    lines += [f"Before tuning: {json.dumps(before)}", ""]
    write_text(options.out / "report.md", "\n".join(lines))
    strips(options, ["0", *steps])
    sys.stdout.write("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
