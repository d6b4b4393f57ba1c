"""Strips: what a watched model saw and said, on every path."""

import pytest
import torch

from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import RecordingModel, SamplerConfig, strip_rows

DATUM = torch.tensor([[0.3, -0.7]])


def exact(path):
    """The network that knows the one sample there is: its word is exact."""

    def model(x, network_time, cond=None):
        mixture = path.mixture(path.time_seen(network_time), x)
        noise = (x - mixture.alpha * DATUM) / mixture.sigma
        a, b = mixture.shares(path.prediction)
        return a * DATUM + b * noise

    return model


PATHS = {
    "flow": (FlowMatchingPath(), SamplerConfig("euler", 5)),
    "flow told t itself": (FlowMatchingPath(time_scale=1.0), SamplerConfig("midpoint", 4)),
    "epsilon": (VPPath(), SamplerConfig("ddim", 5, spacing="linear")),
    "v": (VPPath("cosine", "v"), SamplerConfig("ddim", 6)),
    "data": (VPPath("cosine", "data"), SamplerConfig("dpm", 5)),
    "sigma": (EDMPath(), SamplerConfig("edm", 4)),
    "consistency": (EDMPath(), SamplerConfig("consistency", 1)),
}


@pytest.mark.parametrize("name", PATHS)
def test_frames_hold_the_datum_and_times_fall(name):
    path, sampler = PATHS[name]
    watched = RecordingModel(exact(path), path)
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    made = sampler.sample(path, watched, start)
    assert len(watched.frames) == made.nfe
    times = [frame.t for frame in watched.frames]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(1.0, abs=0.21)  # DDIM's linear steps leave the last ones out
    for frame in watched.frames:
        assert frame.data.shape == frame.x_t.shape == start.shape
        torch.testing.assert_close(frame.data, DATUM.expand(3, 2), atol=2e-2, rtol=0)
        assert frame.x_t.abs().max() < 4  # of unit size, also where sigma is 80


@pytest.mark.parametrize(
    "path", [FlowMatchingPath(), FlowMatchingPath(time_scale=1.0), VPPath(), EDMPath()]
)
def test_time_seen_undoes_network_time(path):
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    torch.testing.assert_close(path.time_seen(path.network_time(t)), t, atol=1e-6, rtol=0)


def test_rows_are_evenly_spaced_frames_and_what_was_made():
    path = FlowMatchingPath()
    watched = RecordingModel(exact(path), path)
    last = SamplerConfig("euler", 20).sample(path, watched, torch.randn(2, 2)).data
    rows = strip_rows(watched.frames, last, columns=8).view(2, 2, 8, 2)
    assert torch.equal(rows[:, 0, 0], watched.frames[0].x_t)
    assert torch.equal(rows[:, 0, 6], watched.frames[-1].x_t)
    assert torch.equal(rows[:, 1, 6], watched.frames[-1].data)
    assert torch.equal(rows[:, 0, 7], last)
    assert strip_rows(watched.frames[:1], last).shape == (2 * 2 * 2, 2)
    with pytest.raises(ValueError, match="expected frames"):
        strip_rows([], last)
