import math

import pytest
import torch

from immiscible_diffusion.smallsd.painted import center_hole, painted


def test_the_hole_is_in_the_middle_on_the_grid_of_latents():
    hole = center_hole(2, 32, 4)
    assert hole.shape == (2, 1, 32, 32)
    assert torch.equal(hole[:, :, 8:24, 8:24], torch.ones(2, 1, 16, 16))
    assert hole.sum() == 2 * 16 * 16
    odd = center_hole(1, 24, 8)  # half of three latents is one
    assert torch.equal(odd[0, 0].nonzero().aminmax(dim=0).min, torch.tensor([8, 8]))
    assert odd.sum() == 64


def test_figures_by_hand():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(6, 3, 8, 8, generator=generator) * 1.6 - 0.8
    hole = center_hole(6, 8, 2)
    sigma = 0.1

    def paint(seen, where, draw):
        assert torch.equal(seen, pictures * (1 - hole))  # nothing hidden is shown
        noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(draw))
        return pictures + sigma * noise

    found = painted(paint, pictures, hole, draws=16)
    assert found.one_draw == pytest.approx(10 * math.log10(4 / sigma**2), abs=0.2)
    assert found.mean_of_draws == pytest.approx(found.one_draw + 10 * math.log10(16), abs=0.4)
    inside = hole.bool().expand_as(pictures)
    mean = pictures.mean((0, 2, 3), keepdim=True).expand_as(pictures)
    error = (mean - pictures)[inside].pow(2).mean()
    assert found.set_color == pytest.approx(float(10 * torch.log10(4 / error)), abs=1e-4)
    seen = pictures[0, 0][~inside[0, 0]].mean()
    flat = torch.where(hole.bool(), seen, pictures)[:1, :1]
    one = painted(lambda *_: flat, pictures[:1, :1], hole[:1], draws=1)
    assert one.known_color == pytest.approx(one.one_draw, abs=1e-4)


def test_a_hole_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"hole must be \[2, 1, 8, 8\]"):
        painted(lambda *_: torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 4, 4))
