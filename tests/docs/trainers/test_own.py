"""The page for loops of one's own, and the example: run as they stand."""

import runpy
import sys

import pytest
import torch

from helpers import ROOT
from immiscible_diffusion import KNN, LinearAssignment
from immiscible_diffusion.couplings.theory import knn_expectation
from immiscible_diffusion.integrations import pull


def test_the_first_lines(page, latents):
    own = page("own")
    found = own.run("after", data=latents, coupling=own.run("setup").coupling)
    lean = own.run("check", data=latents, noise=found.noise).lean
    assert abs(lean - 0.84) < 4 / len(latents) ** 0.5
    assert abs(own.run("check", data=latents, noise=own.run("before", data=latents).noise).lean) < 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_k_1_is_the_line_that_was_there(page, latents, dtype):
    noises = []
    for block in ("before", "after"):
        torch.manual_seed(0)
        noises.append(page("own").run(block, data=latents.to(dtype), coupling=KNN(k=1)).noise)
    assert torch.equal(*noises)


@pytest.mark.parametrize(
    ("rms", "figures"), [(1.0, [0.46, 0.84, 1.16, 1.44, 1.91]), (0.5, [0.33, 0.59, 0.82, 1.02, 1.35])]
)
def test_the_figures_of_the_page(page, many, rms, figures):
    assert ", ".join(f"{figure:.2f}" for figure in figures) in page("own").text.replace("\n", " ")
    for k, figure in zip([2, 4, 8, 16, 64], figures, strict=True):
        assert abs(knn_expectation(k, 4 * 64 * 64, rms).pull - figure) < 0.006
        assert abs(pull(many, KNN(k=k)(rms * many)).mean() - figure) < 4 * 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selecting_among_offset_noises(page, latents, dtype):
    """Every candidate has the offset, and the nearest is taken of all that is in it."""
    data = latents.to(dtype)
    found = page("own").run("offset", data=data, offset=0.5, coupling=KNN(k=4))
    assert found.noise.dtype == dtype
    distances = (found.candidates.to(dtype).float() - data.float()[:, None]).flatten(2).norm(dim=2)
    mine = (found.noise.float() - data.float()).flatten(1).norm(dim=1)
    torch.testing.assert_close(mine, distances.min(dim=1).values)
    assert found.noise.float().mean(dim=(2, 3)).std() > 0.3


@pytest.mark.parametrize("workers", [0, 2])
def test_pairing_in_loader_workers(page, latents, workers):
    data_set = [{"pixel_values": row, "index": i} for i, row in enumerate(latents)]
    local = {"coupling": KNN(k=8), "data_set": data_set, "workers": workers}
    batches = page("own").run("collate", **local).batches
    data, noise = (torch.cat(rows) for rows in zip(*batches, strict=True))
    assert torch.equal(data, latents)
    assert pull(data, noise).mean() > 0.8


@pytest.mark.parametrize("coupling", ["independent", "knn:k=8"])
def test_the_example_trains_and_draws_digits(coupling, monkeypatch, capsys, tmp_path):
    pytest.importorskip("sklearn", reason="the example trains on the digits of scikit-learn")
    image = tmp_path / "digits.png"
    options = ["--coupling", coupling, "--steps", "200", "--out", str(image)]
    monkeypatch.setattr(sys, "argv", ["own_trainer.py", *options])
    runpy.run_path(str(ROOT / "examples" / "own_trainer.py"), run_name="__main__")
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 1.5
    assert image.stat().st_size > 500


def test_a_preconditioned_network_knows_its_pairs(page):
    data = torch.randn(64, 3)
    local = {"network": lambda x, t, cond: 0 * x, "coupling": LinearAssignment(), "batches": [data] * 20}
    model = page("own").run("preconditioned", **local).model
    assert float(model.covariance) > 0.5
    assert model(data, torch.rand(64)).shape == data.shape
