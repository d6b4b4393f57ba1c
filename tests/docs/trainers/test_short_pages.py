"""The short pages: their lines in stand-ins, or in the package where it is installed."""

import pickle
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fixtures.lucidrains import GaussianDiffusion, RectifiedFlow
from immiscible_diffusion import KNN
from immiscible_diffusion.integrations import check_step, pull


class Network(nn.Module):
    """One layer that takes whatever else it is given."""

    def __init__(self, channels=4):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x_t, *conditions, **more):
        return self.layer(x_t)


@pytest.fixture
def images():
    return torch.rand(64, 3, 16, 16)


def test_lucidrains_diffusion(page, images, monkeypatch, capsys):
    module = SimpleNamespace(GaussianDiffusion=GaussianDiffusion)
    monkeypatch.setitem(sys.modules, "denoising_diffusion_pytorch", module)
    local = {**vars(page("lucidrains").run("setup")), "network": Network(3)}
    diffusion = page("lucidrains").run("after", **local).diffusion
    report = page("lucidrains").run("check", diffusion=diffusion, images=images).report
    assert report.problems == []
    assert report.pull > 0.5
    assert "no problem found" in capsys.readouterr().out
    losses = []
    for block, coupling in [("before", None), ("after", KNN(1)), ("after", KNN(8))]:
        diffusion = page("lucidrains").run(block, **{**local, "coupling": coupling}).diffusion
        torch.manual_seed(0)
        losses.append((diffusion(images).item(), torch.get_rng_state().tolist()))
    assert losses[0] == losses[1] != losses[2]
    assert losses[1][1] == losses[2][1]
    with check_step(paired=False) as report, torch.no_grad():
        diffusion.eval()(images)
    assert report.problems == []


def test_lucidrains_flow(page, images):
    with check_step() as report:
        page("lucidrains").run("flow", flow=RectifiedFlow(Network(3)), images=images, coupling=KNN(8))
    assert report.problems == []
    assert report.pull > 0.5


def edm_loss(page, block, network, y):
    """``EDMLoss.__call__`` with the line of the page in its place."""
    sigma = (torch.randn(len(y), 1, 1, 1) * 1.2 - 1.2).exp()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    n = page("edm").run(block, y=y, sigma=sigma).n
    return (weight * ((network(y + n, sigma) - y) ** 2)).sum(), n / sigma


def test_edm(page, images, capsys):
    y, network = images - 0.5, Network(3)
    with check_step() as report:
        _, noise = edm_loss(page, "after", network, y)
    assert report.problems == []
    assert report.correlation is None  # the target is the data
    page("edm").run("check", y=y, n=noise, sigma=1)
    assert capsys.readouterr().out.startswith("pull ")
    states = []
    for block in ("before", "after"):
        torch.manual_seed(0)
        edm_loss(page, block, network, y)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_an_edm_loss_pickles_without_the_package():
    class Loss:  # as persistence pickles it: its fields, by value
        coupling = "knn:k=8"

    assert b"immiscible" not in pickle.dumps(vars(Loss())) + pickle.dumps(Loss.coupling)


def test_flow_matching(page, images):
    paths = pytest.importorskip("flow_matching.path", reason="needs flow_matching", exc_type=ImportError)
    samples, network = images * 2 - 1, Network(3)
    coupling = page("flow_matching").run("setup").coupling
    with check_step() as report:
        noise = page("flow_matching").run("after", samples=samples, coupling=coupling).noise
        sample = paths.CondOTProbPath().sample(t=torch.rand(64), x_0=noise, x_1=samples)
        torch.pow(network(sample.x_t, sample.t) - sample.dx_t, 2).mean().backward()
    assert report.problems == []
    assert report.correlation == pytest.approx(1, abs=1e-4)
    assert pull(samples, noise).mean() > 0.3


@pytest.mark.parametrize("name", ["ai-toolkit", "musubi-tuner", "flow_matching"])
def test_lines_of_noise(page, latents, name):
    trainer = SimpleNamespace(train_config=SimpleNamespace(optimal_noise_pairing_samples=4))
    local = {"samples": latents, "latents": latents, "self": trainer, "dtype": torch.float32, "coupling": KNN(4)}
    noise = page(name).run("after", **local).noise
    state = torch.get_rng_state()
    torch.manual_seed(0)
    torch.randn_like(latents)
    assert torch.equal(torch.get_rng_state(), state)
    assert pull(latents, noise).mean() > 0.2


def test_lightning(page, images, tmp_path):
    lightning = pytest.importorskip("pytorch_lightning", reason="needs pytorch-lightning", exc_type=ImportError)
    loader = torch.utils.data.DataLoader(images * 2 - 1, 16)
    local = {
        **vars(page("lightning").run("setup")),
        "network": Network(3),
        "LightningModule": lightning.LightningModule,
    }
    model = page("lightning").run("after", **local).Model
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = lightning.Trainer(max_epochs=1, default_root_dir=tmp_path, **options)
    trainer.fit(model("knn:k=8"), loader, loader)
    assert trainer.callback_metrics["pull"] > 0.2
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert model.load_from_checkpoint(tmp_path / "one.ckpt").coupling == KNN(8)


def test_jax(page):
    jax = pytest.importorskip("jax", reason="needs jax", exc_type=ImportError)
    data = jax.random.normal(jax.random.key(0), (512, 4, 8, 8))
    noise = jax.jit(page("jax").run("after").knn, static_argnums=2)(jax.random.key(1), data, 8)
    found = pull(torch.tensor(data.tolist()), torch.tensor(noise.tolist()))
    assert float(found.mean()) == pytest.approx(1.16, abs=4 / 512**0.5)


def test_the_key_of_ai_toolkit(page):
    assert re.search(r"^train:\n  optimal_noise_pairing_samples: \d+", page("ai-toolkit").text, re.MULTILINE)
