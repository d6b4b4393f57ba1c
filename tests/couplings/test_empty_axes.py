"""Axes without data, against brute force."""

import pytest
import torch

from helpers import generator
from immiscible_diffusion.couplings import EmptyAxes


def batches(data):
    return lambda: data.split(50)


def test_axes_are_principal_and_empty_by_brute_force():
    # Positive along the first coordinate, of both signs along the second, hardly anything along the others.
    data = torch.randn(200, 4, generator=generator()) * torch.tensor([1.0, 1.0, 1e-3, 1e-5])
    data[:, 0] = data[:, 0].abs() + 2
    axes = EmptyAxes.fit(batches(data)).axes.double()
    directions = data.double() / data.double().norm(dim=1, keepdim=True)
    vectors = torch.linalg.svd(directions - directions.mean(dim=0))[2]
    every = torch.cat([vectors, -vectors])
    expected = every[(directions @ every.T).amax(dim=0) <= 0.01]
    assert len(axes) == len(expected) == 5  # of the last two both signs, of the one along the mean one
    assert torch.allclose((axes @ expected.T).amax(dim=1), torch.ones(5).double(), atol=1e-5)


def test_accepts_compares_cosines_whatever_the_length():
    axes = EmptyAxes((1, 4), torch.eye(4)[:2])
    noise = torch.randn(500, 1, 4, generator=generator())
    cosine = (noise[:, 0] / noise[:, 0].norm(dim=1, keepdim=True))[:, :2].amax(dim=1)
    accepted = axes.accepts(noise, 1.0)
    assert torch.equal(accepted, cosine <= 0.5)
    assert 0 < accepted.sum() < 500
    assert torch.equal(axes.accepts(7 * noise, 1.0), accepted)
    assert EmptyAxes((4,), torch.empty(0, 4)).accepts(noise[:, 0], 1.0).all()
    with pytest.raises(ValueError, match="empty axes were fitted on data of shape"):
        axes.accepts(noise[:, 0], 1.0)


def test_they_are_saved(tmp_path):
    axes = EmptyAxes.fit(batches(torch.randn(60, 1, 2, 3, generator=generator()).abs()))
    axes.save(tmp_path / "axes.safetensors")
    assert EmptyAxes.load(tmp_path / "axes.safetensors") == axes


def test_errors():
    with pytest.raises(ValueError, match="at least one sample, got none"):
        EmptyAxes.fit(lambda: [])
    with pytest.raises(ValueError, match="of at most 4096 values a sample, got 4097"):
        EmptyAxes.fit(lambda: [torch.zeros(1, 4097)])
