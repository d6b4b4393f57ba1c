"""Sampling that starts where there are data."""

import pytest
import torch
from scipy.stats import ks_2samp
from torch import nn

from helpers import generator
from immiscible_diffusion.couplings import EmptyAxes
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import SamplerConfig, pruned_noise, start_noise

AXES = EmptyAxes((4,), torch.eye(4)[:2])


class Still(nn.Module):
    """A network without velocity: samples are the noise that sampling starts from."""

    def forward(self, x, time, cond):
        return torch.zeros_like(x)


def starts(count, size=64, prune=1.2, **sampler):
    sampler = SamplerConfig(steps=1, prune=prune, **sampler)
    pipeline = SamplingPipeline(FlowMatchingPath(), sampler, (4,), batch_size=size, pruning=AXES)
    return torch.cat([data for data, _ in pipeline(Still(), count, seed=5)])


def test_the_pruned_start_is_the_gaussian_given_that_it_is_accepted():
    pruned = starts(3000)
    assert AXES.accepts(pruned, 1.2).all()
    plain = torch.randn(20_000, 4, generator=generator())
    expected = plain[AXES.accepts(plain, 1.2)]
    assert 0.3 < len(expected) / len(plain) < 0.9
    for direction in (*torch.eye(4)[1:], torch.tensor([0.5, 0.5, 0.5, -0.5])):
        assert ks_2samp(pruned @ direction, expected @ direction).pvalue > 1e-3
    assert ks_2samp(pruned.norm(dim=1), expected.norm(dim=1)).pvalue > 1e-3


def test_a_start_depends_on_seed_and_number_alone():
    whole = starts(40)
    assert torch.equal(whole, starts(40, size=7))
    noise = start_noise(5, [31, 2], (4,))
    again = pruned_noise(5, [31, 2], noise, lambda rows: AXES.accepts(rows, 1.2))
    assert torch.equal(again, whole[[31, 2]])


def test_starts_that_are_accepted_stay_as_they_were():
    noise, pruned = start_noise(5, range(200), (4,)), starts(200)
    accepted = AXES.accepts(noise, 1.2)
    assert torch.equal(pruned[accepted], noise[accepted])
    assert (pruned[~accepted] != noise[~accepted]).all()
    assert torch.equal(starts(200, prune=None), noise)
    assert torch.equal(starts(200, init_scale=0.5), 0.5 * pruned)


def test_errors():
    with pytest.raises(ValueError, match="needs the directions without data"):
        SamplingPipeline(FlowMatchingPath(), SamplerConfig(prune=2.0), (4,))
    with pytest.raises(ValueError, match="refused 128 starts of sample 3"):
        pruned_noise(0, [3], torch.zeros(1, 4), lambda rows: torch.zeros(len(rows), dtype=torch.bool), attempts=128)
