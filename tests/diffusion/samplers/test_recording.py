"""Recorded trajectories: inputs and predictions of a model on every path."""

import pytest
import torch

from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import RecordingModel, SamplerConfig, trajectory_grid

SAMPLE = torch.tensor([[0.3, -0.7]])


def exact(path):
    """The optimal network for a data set of one sample."""

    def model(x, network_time, cond=None):
        mixture = path.mixture(path.from_network_time(network_time), x)
        noise = (x - mixture.alpha * SAMPLE) / mixture.sigma
        a, b = mixture.coefficients(path.prediction)
        return a * SAMPLE + b * noise

    return model


PATHS = {
    "flow": (FlowMatchingPath(), SamplerConfig("euler", 5)),
    "flow, network time t": (FlowMatchingPath(time_scale=1.0), SamplerConfig("midpoint", 4)),
    "epsilon": (VPPath(), SamplerConfig("ddim", 5, spacing="linear")),
    "v": (VPPath("cosine", "v"), SamplerConfig("ddim", 6)),
    "data": (VPPath("cosine", "data"), SamplerConfig("dpm", 5)),
    "sigma": (EDMPath(), SamplerConfig("edm", 4)),
    "consistency": (EDMPath(), SamplerConfig("consistency", 1)),
}


@pytest.mark.parametrize("name", PATHS)
def test_frames_hold_the_sample_and_times_fall(name):
    path, sampler = PATHS[name]
    recording = RecordingModel(exact(path), path)
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    output = sampler.sample(path, recording, start)
    assert len(recording.frames) == output.nfe
    times = [frame.t for frame in recording.frames]
    assert times == sorted(times, reverse=True)
    assert times[0] == pytest.approx(1.0, abs=0.21)  # DDIM's linear steps leave the last ones out
    for frame in recording.frames:
        assert frame.data.shape == frame.x_t.shape == start.shape
        torch.testing.assert_close(frame.data, SAMPLE.expand(3, 2), atol=2e-2, rtol=0)
        assert frame.x_t.abs().max() < 4  # of unit size, also where sigma is 80


@pytest.mark.parametrize("path", [FlowMatchingPath(), FlowMatchingPath(time_scale=1.0), VPPath(), EDMPath()])
def test_from_network_time_undoes_network_time(path):
    t = torch.arange(1, 11, dtype=torch.float64) / 10
    torch.testing.assert_close(path.from_network_time(path.network_time(t)), t, atol=1e-6, rtol=0)


def test_rows_are_evenly_spaced_frames_and_the_samples():
    path = FlowMatchingPath()
    recording = RecordingModel(exact(path), path)
    samples = SamplerConfig("euler", 20).sample(path, recording, torch.randn(2, 2)).data
    rows = trajectory_grid(recording.frames, samples, columns=8).view(2, 2, 8, 2)
    assert torch.equal(rows[:, 0, 0], recording.frames[0].x_t)
    assert torch.equal(rows[:, 0, 6], recording.frames[-1].x_t)
    assert torch.equal(rows[:, 1, 6], recording.frames[-1].data)
    assert torch.equal(rows[:, 0, 7], samples)
    assert trajectory_grid(recording.frames[:1], samples).shape == (2 * 2 * 2, 2)
    with pytest.raises(ValueError, match="expected frames"):
        trajectory_grid([], samples)
