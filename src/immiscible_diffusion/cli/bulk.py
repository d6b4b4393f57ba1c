"""``immiscible bulk MODEL``."""

import hashlib
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import tyro

from immiscible_diffusion.cli.options import Device, parse
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data.prompts import (
    Synonyms,
    check_template,
    class_prompts,
)
from immiscible_diffusion.evaluation.bulk import (
    Plan,
    PngStore,
    Store,
    TarStore,
    missing_rows,
    run_bulk,
)
from immiscible_diffusion.evaluation.bulk.run import PROMPTS, Draw, claim
from immiscible_diffusion.evaluation.bulk.sources import from_pipeline, from_trained, load_pipeline
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.metrics.features.preprocess import weights_digest
from immiscible_diffusion.training.progress import Progress
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.utils.atomic_files import write_text
from immiscible_diffusion.utils.distributed import place

ENCODERS = ("text_encoder", "text_encoder_2")
OF_RUNS = ("method", "start", "spacing", "eta", "clip")
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Options(SamplerChanges):
    """Make many pictures, over class names in order: for FID, 50,000 of them.

    Picture i depends on the seed and i alone, and is of class i mod the number of classes. The
    same command goes on after an interruption, without a duplicate or a gap; under `accelerate
    launch` every process makes its share.

    Args:
        model: a run folder, a folder with a pipeline of diffusers, or its name on the hub.
        out: folder for the pictures.
        count: pictures in all; more can be asked for later.
        kind: png, files {class}_{i}.png; tar, shards of them; or both.
        seed: of the start noise.
        classes: a file of class names, one a line, synonyms parted by commas; a run knows its own.
        prompts: a file of prompts, one a line, instead of classes.
        prompt: one prompt for all pictures.
        template: what is said of a class.
        synonyms: which synonyms of a class name are said.
        shard_size: pictures in a tar shard.
        batch_size: pictures at a time, on each process.
        precision: of a pipeline.
        device: where to sample.
    """

    model: Annotated[str, tyro.conf.Positional]
    out: Path
    count: int = 50_000
    kind: Literal["png", "tar", "both"] = "png"
    seed: int = 0
    classes: Path | None = None
    prompts: Path | None = None
    prompt: str | None = None
    template: str = "{label}"
    synonyms: Synonyms = "first"
    shard_size: int = 1000
    batch_size: int = 16
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    device: Device = "auto"

    def __post_init__(self) -> None:
        check_template(self.template)
        if sum(given is not None for given in self.said) > 1:
            raise ValueError("classes, prompts and prompt are things to say; give one of them")

    @property
    def said(self) -> tuple[object, ...]:
        """What says what is to be seen."""
        return self.classes, self.prompts, self.prompt


class Work(NamedTuple):
    """What is to be made, what makes it, how (in words that must not change), and what is said."""

    plan: Plan
    draw: Draw
    how: dict[str, Any]
    prompts: Sequence[str] = ()


def main(arguments: list[str]) -> int:
    """Make the pictures that are missing; says how many there are."""
    options = parse(Options, arguments, "bulk")
    rank, world, device = place(options.device)
    plan, draw, how, prompts = of_model(options, device)
    stores = stores_of(options, plan)
    claim(options.out, how)
    if prompts:
        write_text(options.out / PROMPTS, "".join(f"{prompt}\n" for prompt in prompts))
    missing_rows(stores)  # tells now if the folder holds others
    with ExitStack() as stack:
        shown: list[Progress] = []

        def told(done: int, of: int) -> None:
            if not shown:
                bar = Progress(of, done, "sampling", unit="picture", quiet=rank > 0)
                shown.append(stack.enter_context(bar))
            shown[0].update(done)

        run_bulk(stores, draw, batch_size=options.batch_size, rank=rank, world=world, told=told)
    left = missing_rows(stores)
    state = "complete" if not left else f"{left:,} of other processes to come"
    sys.stderr.write(f"{options.out}: {plan.count - left:,} of {plan.count:,} pictures; {state}\n")
    return 0


def stores_of(options: Options, plan: Plan) -> list[Store]:
    """Where the pictures go."""
    stores: list[Store] = []
    if options.kind in ("png", "both"):
        stores.append(PngStore(plan, options.out))
    if options.kind in ("tar", "both"):
        stores.append(TarStore(plan, options.out, options.shard_size))
    return stores


def of_model(options: Options, device: torch.device) -> Work:
    """What the options ask of their model."""
    folder = Path(options.model)
    if (folder / "recipe.json").is_file():
        return of_run(options)
    return of_pipeline(options, device)


def of_run(options: Options) -> Work:
    """Pictures of a run, over the classes of its data if it is conditional, or what is given."""
    run = RunDir.existing(Path(options.model))
    given = any(said is not None for said in options.said)
    if given and not run.recipe().by_text:
        raise ValueError("this run was not trained on prompts; leave classes, prompts and prompt")
    trained = LoadedRun.load(run, options.device)
    sampler = options.of(trained.recipe.sampler)
    classes = trained.dataset.num_classes if trained.recipe.conditional else None
    names = getattr(trained.dataset, "class_names", None) or [str(c) for c in range(classes or 0)]
    prompts: Sequence[str] = ()
    if given:
        names, prompts = texts_of(options)
    plan = Plan(options.count, names if classes or given else None)
    how = {
        "weights": weights_digest(trained.model),
        "step": trained.step,
        "sampler": str(sampler),
    }
    if given:
        how["prompts"] = _hash(prompts)
    draw = from_trained(trained, sampler, options.seed, prompts)
    return Work(plan, draw, _common(options, plan) | how, prompts)


def of_pipeline(options: Options, device: torch.device) -> Work:
    """Pictures of a pipeline, over the classes or prompts that are given."""
    given = [name for name in OF_RUNS if getattr(options, name) is not None]
    if given:
        raise ValueError(f"a pipeline has its own sampler and start; leave {', '.join(given)}")
    names, prompts = texts_of(options)
    settings = {"num_inference_steps": options.steps, "guidance_scale": options.guidance}
    settings = {name: value for name, value in settings.items() if value is not None}
    pipeline = load_pipeline(options.model, device, PRECISIONS[options.precision])
    plan = Plan(options.count, names)
    network = getattr(pipeline, "unet", None) or pipeline.transformer
    parts = {"network": network, "vae": pipeline.vae}
    parts |= {n: p for n in ENCODERS if (p := getattr(pipeline, n, None)) is not None}
    how = {
        **{name: weights_digest(part) for name, part in parts.items()},
        "scheduler": _hash([f"{k}={v}" for k, v in sorted(pipeline.scheduler.config.items())]),
        "prompts": _hash(prompts),
        "precision": options.precision,
    }
    draw = from_pipeline(pipeline, prompts, options.seed, **settings)
    return Work(plan, draw, _common(options, plan) | how | settings, prompts)


def _common(options: Options, plan: Plan) -> dict[str, Any]:
    classes = _hash(plan.classes) if plan.classes else None
    tar = {} if options.kind == "png" else {"shard_size": options.shard_size}
    return {"seed": options.seed, "classes": classes, "kind": options.kind} | tar


def _hash(texts: Any) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def texts_of(options: Options) -> tuple[list[str], list[str]]:
    """What pictures are called, and what is said for them."""
    if options.prompt is not None:
        if "\n" in options.prompt:
            raise ValueError("a prompt is one line; leave line breaks out")
        return [options.prompt], [options.prompt]
    if options.prompts is not None:
        prompts = read_lines(options.prompts)
        return prompts, prompts
    if options.classes is None:
        raise ValueError(
            "what is to be seen? --classes FILE (a name a line), --prompts FILE or --prompt TEXT"
        )
    names = read_lines(options.classes)
    return (
        class_prompts(names, "{label}", options.synonyms),
        class_prompts(names, options.template, options.synonyms),
    )


def read_lines(file: Path) -> list[str]:
    """The lines of a file; ValueError if one is empty."""
    if not file.is_file():
        raise ValueError(f"there is no file {file}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").strip("\n").split("\n")]
    if not all(lines):
        raise ValueError(
            f"{file}: line {lines.index('') + 1} is empty, and every line is of one picture in turn"
        )
    return lines
