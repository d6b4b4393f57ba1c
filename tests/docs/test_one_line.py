"""``examples/diffusers_one_line.md``: its loop runs, and its one line makes it immiscible."""

import difflib
import re

import pytest
import torch

from helpers import ROOT
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging

PAGE = ROOT / "examples" / "diffusers_one_line.md"
BLOCKS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))


def changed(after=BLOCKS["after"]):
    """The page's loop with its line changed as the page says."""
    assert BLOCKS["loop"].count(BLOCKS["before"]) == 1
    return BLOCKS["setup"] + BLOCKS["loop"].replace(BLOCKS["before"], after)


def run(script, pipeline, **options):
    """What the script's ``train`` gives on random images, and the noises it mixed in."""
    seen = []
    with silence_hf_logging():
        names = {}
        exec(compile(script, "loop", "exec"), names)
        scheduler = names["DDPMScheduler"]

        class Recorder(scheduler):
            def add_noise(self, latents, noise, timesteps):
                seen.append((latents.clone(), noise.clone()))
                return super().add_noise(latents, noise, timesteps)

        names["DDPMScheduler"] = Recorder
        generator = torch.Generator().manual_seed(1)
        images = torch.rand(32, 3, 16, 16, generator=generator) * 2 - 1
        captions = [f"image {row}" for row in range(32)]
        options = {"steps": 3, "batch_size": 16, **options}
        unet, losses = names["train"](pipeline, images, captions, **options)
    return unet, losses, seen


def leaning(seen):
    """Mean of <noise, latents> / |latents|, a sample."""
    latents, noise = (torch.cat(part).flatten(1) for part in zip(*seen, strict=True))
    return float(((latents * noise).sum(1) / latents.norm(dim=1)).mean())


def test_one_line_differs_and_one_is_added():
    before, after = BLOCKS["loop"].splitlines(), changed().splitlines()
    lines = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    assert sorted(line[0] for line in lines if line[0] != "@") == ["+", "+", "-"]


@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_the_changed_script_pairs_and_trains(small_sd, offset):
    _, losses, seen = run(BLOCKS["loop"], str(small_sd), noise_offset=offset)
    assert len(losses) == 3
    assert abs(leaning(seen)) < 4 / 48**0.5
    unet, losses, seen = run(changed(), str(small_sd), noise_offset=offset)
    assert leaning(seen) > 1.2
    assert all(0 < loss < 10 for loss in losses)
    assert all(weight.isfinite().all() for weight in unet.parameters())


def test_k_1_is_a_script_that_calls_randn_like_bit_for_bit(small_sd):
    plain = changed(BLOCKS["after"].replace("KNN(k=64)(latents)", "torch.randn_like(latents)"))
    stock, losses, _ = run(plain, str(small_sd))
    same, again, _ = run(changed(BLOCKS["after"].replace("64", "1")), str(small_sd))
    assert losses == again
    for one, other in zip(stock.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)
