"""300 odd command lines: each works, or is an error of one line and exit code 2."""

import os
import random
import traceback

import pytest

from fuzz.conftest import call, made_run
from immiscible_diffusion.cli.main import COMMANDS

pytestmark = pytest.mark.nightly
SEED, LINES = int(os.environ.get("FUZZ_SEED", "0")), int(os.environ.get("FUZZ_LINES", "300"))
PLAIN = ("1", "2", "4", "0.5", "8 8", "digits", "linear", "cpu", "euler", "ddim", "edm", "frechet", "knn:k=2", "label")
ODD = (
    *("-1", "0", "1.5", "-0.5", "1e999", "nan", "inf", "99999999999999999999999", "1e-300", "300", "1,2", "3,4,4"),
    *("", " ", "x", "None", "true", "../..", "/dev/null", "a" * 300, "\ud800", "-", "--", "[1", "os:system"),
    *("torch.nn:Identity", "knn:k=0", "matched:shuffled:knn:k=3", "knn:k=((((", "shuffled:" * 300 + "knn:k=2"),
)
RECIPE = """
    --coupling --batch-size --gradient-accumulation-steps --steps --seed --log-every --validate-every --preview-every
    --checkpoint-every --prefetch --mixed-precision --cond-drop-prob --conditional --model.width --model.depth
    --model.dropout --model.kind --model.precondition --path.kind --path.shift --path.time-scale --path.std --loss.kind
    --loss.noise-offset --optim.lr --optim.betas --optim.warmup-steps --optim.max-grad-norm --ema.decay --ema.power
    --sampler.steps --sampler.method --sampler.guidance --sampler.prune --sampler.shift --scaling.factor --data.name
    --data.size --data.max-samples --data.channels --data.split --data.in-memory-gib --eval.num --eval.sampling-steps
    --eval.samples --eval.features --eval.steps --trackers --device --name
"""
COMMAND_LINES = {  # what is right, and options
    "train": ("digits-flow --tiny --dry-run", RECIPE),
    "compare": (
        "digits-flow --tiny --list",
        f"--seeds --coupling --workers --trial --guidances --list --controls --gather {RECIPE}",
    ),
    "sample": (
        "RUN --count 2",
        "--count --seed --sampling-steps --method --guidance --prune --shift --eta --clip --init-noise --init-scale "
        "--spacing --format --shard-size --batch-size --prompt --prompts --classes --template --pipeline --allow-code "
        "--device --precision --to",
    ),
    "evaluate": (
        "RUN",
        "--samples --real --seed --features --metrics --guidances --guidance --clip-metrics --folder --sampling-steps "
        "--batch-size --allow-code --device --calibrate",
    ),
    "analyze": (
        "--data digits --max-images 20 --probes 2 --pairs 10 --dry-run",
        "--data --size --channels --max-images --coupling --levels --probes --pairs --bandwidth --batch-size "
        "--thumbnails --seed --path.kind --path.sigma-max --cond --mask --array --threads --split --flip",
    ),
    "pilot": (
        "--data digits --max-images 40 --seeds 1 --steps 2 --dry-run",
        "--data --coupling --minutes --sampling-steps --network --seed --seeds --steps --max-images --size --cond "
        "--threads --normalize",
    ),
    "describe": ("knn:k=2 --shape 1,4,4", "--shape --rms --data-count --batch --device --json"),
    "report": ("RUN", "--latex --csv --out"),
    "encode": (
        "RUN --data digits --out latents",
        "--data --size --channels --max-samples --dtype --shard-size --batch-size --caption-column",
    ),
    "download": ("digits-flow", "--coupling --data.name --eval.features --batch-size"),
    "demo": ("--tiny --list", "--seeds --trial --workers --list"),
    "recipes": ("digits-flow", "--json"),
    "nothing": ("", "--help"),
}


def words(rng: random.Random, run: str) -> list[str]:
    """A command with a few options of odd values, or plain ones."""
    command = rng.choice([*COMMAND_LINES, "train", "train", "sample", "evaluate"])
    right, options = COMMAND_LINES[command]
    argv = [command, *(run if word == "RUN" else word for word in right.split())]
    for _ in range(rng.choice([1, 1, 2, 3])):
        argv.append(rng.choice(options.split()))
        argv += rng.choice(PLAIN).split() if rng.random() < 0.5 else rng.choices(ODD, k=rng.choice([0, 1, 1, 2]))
    return argv


def test_odd_command_lines(tmp_path, monkeypatch):
    assert {*COMMAND_LINES} == {*COMMANDS, "nothing"}
    made_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    rng, bad, counts = random.Random(f"lines {SEED}"), [], {0: 0, 2: 0}
    for number in range(LINES):
        argv = words(rng, str(tmp_path / "run"))
        try:
            code, _, err = call(argv)
        except Exception:  # noqa: BLE001 - that is what is looked for
            bad.append(f"TRACEBACK {number}: {argv}\n{traceback.format_exc(limit=-3)}")
            continue
        counts[code] = counts.get(code, 0) + 1
        if code not in (0, 2) or "Traceback" in err:
            bad.append(f"EXIT {code} {number}: {argv}\n{err}")
    print(f"command lines: {counts}, bad {len(bad)}")  # noqa: T201
    assert not bad, "\n".join(bad)
