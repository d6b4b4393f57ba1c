"""Stable Diffusion end to end on a CPU: built, trained, tuned, in-painted with and evaluated.

    OMP_NUM_THREADS=1 python -m reproduce.small_stable_diffusion --data CIFAR10 --out runs/small

Every stage is a command of the library in a process of its own, two at a time; its wall and CPU
seconds (children included) are noted. Stages that are done are skipped, so the same line goes on
after an interruption. Then the bars: held-out PSNR of the VAE at least 20 dB; accuracy of a
separately trained classifier on images of asked-for classes at least half of its accuracy on VAE
reconstructions; the mean of 16 in-paintings closer to the hidden part than the mean color; all within
30 minutes of two cores. ``--scale 0.02`` tries the script.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from examples.tiny_stable_diffusion.evaluate import label_classifier
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.utils.atomic_files import read_json, write_json, write_text
from immiscible_diffusion.utils.images import image_grid
from reproduce.small_stable_diffusion.evaluate import SAMPLING_STEPS, inpainting_scores, label_accuracy, labeled_grid

SCRATCH, TUNED, LORA, INPAINT = 700, 150, 150, 400
RUNS = ("independent", "knn", "finetune", "lora", "inpaint")
GUIDANCE = 3.0
SAMPLES, ENOUGH = 1400, 1281  # EfficientNet has 1280 features
BUDGET = 30 * 60
FRECHET = ("--metrics", "frechet", "--real", "5000")  # all 50,000 take 20 minutes on a CPU


def recipe_options(arguments: argparse.Namespace, steps: int, lr: float) -> list[str]:
    """Options of every recipe: the data, which pipeline, and the sizes that suit it."""
    return [
        *("--data.name", arguments.name, "--data.path", str(arguments.data), "--data.size", "32"),
        *("--codec.pretrained", str(arguments.out / "pipeline"), "--path.prediction", "v"),
        *("--steps", str(steps), "--batch-size", "64", "--gradient_accumulation_steps", "1"),
        *("--optim.lr", str(lr), "--optim.warmup_steps", str(min(100, max(1, steps // 10)))),
        *("--optim.lr_schedule", "cosine", "--ema.warmup", "--cond_drop_prob", "0.1"),
        *("--model.no-gradient-checkpointing", "--mixed_precision", "no", "--device", "cpu"),
        *("--preview-every", "0", "--log-every", "20", "--validate-every", "200"),
    ]


def stages(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The commands by name, in order."""
    out, scale = arguments.out, arguments.scale
    pipeline, data = out / "pipeline", str(arguments.data)

    def steps(full: int) -> int:
        return max(4, round(full * scale))

    def train(recipe: str, run: str, count: int, lr: float, *more: str) -> list[str]:
        options = recipe_options(arguments, count, lr)
        options += [] if recipe == "sd-lora" else ["--sampler.method", "ddim", "--sampler.spacing", "linear"]
        return ["train", recipe, "--out", str(out / run), *options, *more]

    small = ["--vae.steps", str(steps(700)), "--text.steps", str(steps(150))]
    scratch, base = "imagenet-sd-scratch", ["--model.pretrained", str(out / "independent")]
    found = {
        "make": [arguments.name, "--path", data, "--out", str(pipeline), *small],
        "independent": train(scratch, "independent", steps(SCRATCH), 1e-3),
        "knn": train(scratch, "knn", steps(SCRATCH), 1e-3, "--coupling", "knn:k=16"),
        "finetune": train("imagenet-sd-finetune", "finetune", steps(TUNED), 2e-4, *base),
        "lora": train("sd-lora", "lora", steps(LORA), 1e-3, *base, *lora_data(arguments)),
        "inpaint": train("sd-inpaint", "inpaint", steps(INPAINT), 1e-3, *base),
    }
    for run in ("independent", "knn", "finetune"):
        found[f"sample {run}"] = sample(arguments, run)
        features = "efficientnet" if pictures_of(arguments) >= ENOUGH else "pixels"
        folder = ["--folder", str(out / f"images-{run}"), "--features", features]
        found[f"evaluate {run}"] = ["evaluate", str(out / run), *folder, *FRECHET]
    return found


def needs(stage: str) -> set[str]:
    """The stages that must be done before ``stage``."""
    if stage == "make":
        return set()
    kind, _, run = stage.partition(" ")
    if kind == "sample":
        return {run}
    if kind == "evaluate":  # the first one keeps the features of the real data for the others
        return {f"sample {run}", *({"evaluate independent"} - {stage})}
    return {"make"} if stage in ("independent", "knn") else {"independent"}


def pictures_of(arguments: argparse.Namespace) -> int:
    """How many images every run makes."""
    return max(20, round(SAMPLES * arguments.scale))


def lora_data(arguments: argparse.Namespace) -> list[str]:
    """Twenty images with captions, batch 1."""
    folder = arguments.out / "twenty"
    small = ("--buckets.size", "32", "--buckets.step", "32", "--batch-size", "1")
    return ["--data.name", "folder", "--data.path", str(folder), *small]


def sample(arguments: argparse.Namespace, run: str) -> list[str]:
    """The command that makes labeled images with a run."""
    return [
        *("sample", str(arguments.out / run), "--to", str(arguments.out / f"images-{run}")),
        *("--count", str(pictures_of(arguments)), "--classes", str(arguments.out / "classes.txt")),
        *("--sampling-steps", str(SAMPLING_STEPS), "--guidance", str(GUIDANCE), "--batch-size", "100"),
        *("--device", "cpu"),
    ]


def write_inputs(arguments: argparse.Namespace, held: Any) -> None:
    """The class names, and twenty held-out images of one class with a caption each."""
    write_text(arguments.out / "classes.txt", "".join(f"{name}\n" for name in held.class_names))
    folder = arguments.out / "twenty"
    folder.mkdir(exist_ok=True)
    rows = (held.labels == 0).nonzero().flatten()[:20]
    for number, image in enumerate(held.batch(rows).data):
        image_grid(image[None]).save(folder / f"{number:02}.png")
        write_text(folder / f"{number:02}.txt", f"a sks {held.class_names[0]}\n")


def run_stage(name: str, command: list[str], arguments: argparse.Namespace) -> dict[str, float]:
    """Run a command; its wall and CPU seconds. Ends the script if it fails."""
    log = arguments.out / f"{name.replace(' ', '-')}.log"
    began = time.time()
    module = "examples.tiny_stable_diffusion" if name == "make" else "immiscible_diffusion"
    print(f"{name}: python -m {module} {' '.join(command)}", flush=True)
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *command], stdout=file, stderr=subprocess.STDOUT, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    if code:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise SystemExit(f"{name} ended with {code}: {' '.join(last)} (all of it: {log})")
    cpu = used.ru_utime + used.ru_stime
    return {"began": began, "wall": time.time() - began, "cpu": cpu}


def seconds_in_all(seconds: dict[str, dict[str, float]]) -> float:
    """How long any stage ran: what overlaps counts once, and pauses between calls not at all."""
    total, until = 0.0, 0.0
    for part in sorted(seconds.values(), key=lambda part: part["began"]):
        ended = part["began"] + part["wall"]
        total += max(0.0, ended - max(until, part["began"]))
        until = max(until, ended)
    return total


def run_all(todo: dict[str, list[str]], done: set[str], jobs: int, run: Callable[[str], None]) -> None:
    """Run the stages of ``todo``, up to ``jobs`` at a time, each after what it needs."""
    left, running = list(todo), dict[Future[None], str]()
    with ThreadPoolExecutor(jobs) as pool:
        while left or running:
            due = [name for name in left if needs(name) <= done]
            for name in due[: jobs - len(running)]:
                left.remove(name)
                running[pool.submit(run, name)] = name
            if not running:
                raise SystemExit(f"{left[0]} needs {', '.join(needs(left[0]) - done)} first")
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(ended)
                ended.result()
                done.add(name)


def report(figures: dict[str, Any], seconds: dict[str, dict[str, float]]) -> list[str]:
    """The table of stages and the bars."""
    lines = ["| stage | CPU s | wall s |", "|---|--:|--:|"]
    lines += [f"| {name} | {t['cpu']:.0f} | {t['wall']:.0f} |" for name, t in seconds.items()]
    total, wall = sum(t["cpu"] for t in seconds.values()), seconds_in_all(seconds)
    lines += [f"| all, two at a time | {total:.0f} | {wall:.0f} |", ""]
    bar = figures["classifier"]["reconstructions"] / 2
    rows = [("held-out PSNR of the VAE, dB", figures["vae"]["psnr"], 20.0)]
    for run, part in figures["labels"].items():
        rows.append((f"accuracy on labels, {run}", part["accuracy"], bar))
    if inpainting := figures.get("inpainting"):
        inside = "PSNR inside the mask of the mean of 16, dB"
        rows.append((inside, inpainting["mean_of_draws"], inpainting["image_color"]))
    lines += ["| bar | reached | at least | |", "|---|--:|--:|---|"]
    for name, value, least in rows:
        reached = "yes" if value >= least else "NO"
        lines.append(f"| {name} | {value:.3g} | {least:.3g} | {reached} |")
    fits = "yes" if wall <= BUDGET else "NO"
    lines.append(f"| minutes in all | {wall / 60:.0f} | <= {BUDGET / 60:.0f} | {fits} |")
    return lines


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="where the data set is")
    parser.add_argument("--name", default="cifar10", help="its name")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all steps and images")
    parser.add_argument("--only", nargs="*", help="these stages only")
    parser.add_argument("--jobs", type=int, default=2, help="stages at a time")
    return parser.parse_args()


def main() -> int:
    arguments = options()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    config = DataConfig(arguments.name, path=str(arguments.data), split="test", channels=3)
    held = load_images(config)
    write_inputs(arguments, held)
    record = arguments.out / "stages.json"
    seconds = read_json(record) if record.exists() else {}
    every = stages(arguments)

    def run(name: str) -> None:
        seconds[name] = run_stage(name, every[name], arguments)
        write_json(record, dict(seconds))

    wanted = arguments.only or every
    todo = {name: every[name] for name in every if name in wanted and name not in seconds}
    run_all(todo, set(seconds), arguments.jobs, run)
    began = time.time()
    figures = read_json(arguments.out / "pipeline" / "figures.json")
    config = DataConfig(arguments.name, path=str(arguments.data), channels=3)
    classifier = label_classifier(load_images(config))
    figures["labels"] = {
        run: label_accuracy(classifier, folder) for run in RUNS if (folder := arguments.out / f"images-{run}").is_dir()
    }
    if (arguments.out / "inpaint" / "model_index.json").is_file():
        figures["inpainting"] = inpainting_scores(arguments, held)
    labeled_grid(arguments, held.class_names or (), RUNS)
    seconds["evaluate and inpaint"] = {"began": began, "wall": time.time() - began, "cpu": time.process_time()}
    write_json(arguments.out / "figures.json", {**figures, "stages": seconds})
    text = "\n".join(report(figures, seconds))
    write_text(arguments.out / "report.md", text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
