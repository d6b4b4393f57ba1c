"""Principal directions of a stream are those of the whole."""

import numpy as np
import pytest
import torch

from immiscible_diffusion.couplings.moments import IncrementalPCA


def spread(count, dim, decay):
    generator = torch.Generator().manual_seed(dim)
    scales = torch.arange(1, dim + 1, dtype=torch.float64) ** -decay
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) * scales @ rotation + 3


def streamed(data, rank, batch):
    pca = IncrementalPCA(rank)
    for part in data.split(batch):
        pca.update(part)
    return pca


@pytest.mark.parametrize(("count", "dim", "batch"), [(200, 20, 7), (30, 50, 4), (1000, 8, 1000)])
def test_exact_while_the_rank_suffices(count, dim, batch):
    data = spread(count, dim, 1.0)
    pca = streamed(data, min(count, dim), batch)
    directions, spectrum = pca.leading(5)
    _, values, vectors = np.linalg.svd((data - data.mean(dim=0)).numpy(), full_matrices=False)
    assert np.allclose(pca.mean, data.mean(dim=0))
    assert np.allclose(spectrum, values[:5] ** 2 / count)
    assert np.allclose(directions @ directions.T, np.eye(5))
    overlap = np.abs(directions.numpy() @ vectors[:5].T)
    assert np.allclose(overlap, np.eye(5), atol=1e-6)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_close_where_the_tail_is_dropped(decay):
    data = spread(3000, 400, decay)
    directions, spectrum = streamed(data, 2 * 16 + 64, 100).leading(16)
    values = np.linalg.svd((data - data.mean(dim=0)).numpy(), compute_uv=False)
    exact = values**2 / len(data)
    along = (data - data.mean(dim=0)) @ directions.T
    assert np.allclose(along.square().mean(dim=0), spectrum, rtol=0.1)
    captured = float(along.square().mean(dim=0).sum()) / exact[:16].sum()
    assert captured > 0.97


def test_rows_all_alike_have_no_direction():
    directions, spectrum = streamed(torch.ones(10, 4).double(), 4, 3).leading(4)
    assert directions.shape[0] == spectrum.shape[0] <= 1
    assert float(spectrum.sum()) < 1e-12
