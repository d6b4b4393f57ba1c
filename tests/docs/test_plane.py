"""The figure of the site's first page computes in the browser what the package computes."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from examples.toy_2d.assignment_theory import diagram
from examples.toy_2d.data import GROUPS, toy_data
from examples.toy_2d.result import euler_ends, exact_paths, straightness
from helpers import ROOT, generator
from immiscible_diffusion import KNN, FlowMatchingPath, Independent
from immiscible_diffusion.analysis.noise_density import density_of, log_density
from immiscible_diffusion.analysis.noncentral_chi2 import log_survival
from immiscible_diffusion.analysis.posterior import OptimalDenoiser, posterior
from immiscible_diffusion.utils.batch import Batch

NODE = shutil.which("node")
MATH = ROOT / "docs" / "javascripts" / "plane_math.js"
COUNT = 128

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(NODE is None, reason="needs node, to run the figure's JavaScript"),
]


def javascript(body, **values):
    """What ``body`` returns, given ``m``, the figure's mathematics, and ``v``, the values; tensors are flat lists."""
    values = {name: value.flatten().tolist() if torch.is_tensor(value) else value for name, value in values.items()}
    script = f"""
        const m = require({json.dumps(str(MATH))});
        const v = JSON.parse(require("fs").readFileSync(0, "utf8"));
        const result = (() => {{ {body} }})();
        const plain = (_, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
        process.stdout.write(JSON.stringify(result, plain));
    """
    run = subprocess.run([NODE, "-e", script], input=json.dumps(values), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def density_js(coupling):
    k = coupling.k if isinstance(coupling, KNN) else 1
    return f"const density = m.knnDensity(v.points, {k});"


COUPLINGS = [Independent(), KNN(k=2), KNN(k=4), KNN(k=64)]


@pytest.mark.parametrize("length", [0.0, 0.3, 2.0, 3.9])
def test_log_survival(length):
    distance = torch.cat([torch.linspace(0.01, length + 12, 200), torch.tensor([20.0, 40.0])]).double()
    ours = log_survival(distance.square(), 2.0, length**2)
    body = "const table = m.survivalTable(v.length); return v.distance.map((d) => m.logSurvival(table, d));"
    theirs = torch.tensor(javascript(body, length=length, distance=distance)).double()
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("coupling", COUPLINGS, ids=str)
@pytest.mark.parametrize("name", ["eight_gaussians", "spiral"])
def test_posterior(coupling, name):
    points = toy_data(name, COUNT).points.double()
    x = 1.5 * torch.randn(40, 2, generator=generator()).double()
    for t in (0.05, 0.3, 0.7, 1.0):
        ours = posterior(density_of(coupling), Batch(points), x, 1 - t, t)
        body = f"""{density_js(coupling)}
            const weights = [], mean = [], effective = [];
            for (let i = 0; i < v.x.length; i += 2) {{
                const own = new Float64Array({COUNT});
                const found = m.posterior(density, v.points, v.x[i], v.x[i + 1], v.t, own);
                weights.push(own); mean.push([found.x, found.y]); effective.push(found.effective);
            }}
            return {{ weights, mean, effective }};"""
        theirs = javascript(body, points=points, x=x, t=t)
        theirs = {name: torch.tensor(value).double() for name, value in theirs.items()}
        torch.testing.assert_close(theirs["weights"], ours.log_probability.exp(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(theirs["mean"], ours.mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(theirs["effective"], ours.entropy.exp(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("coupling", COUPLINGS[::2], ids=str)
def test_sampling_paths(coupling):
    points = toy_data("eight_gaussians", COUNT).points.double()
    start = torch.randn(12, 2, generator=generator()).double()
    denoiser = OptimalDenoiser.of(points, coupling, FlowMatchingPath())
    body = f"""{density_js(coupling)}
        const paths = [], ends = [];
        for (let i = 0; i < v.start.length; i += 2) {{
            paths.push(m.samplingPath(density, v.points, v.start[i], v.start[i + 1], 60));
            ends.push(m.eulerEnd(density, v.points, v.start[i], v.start[i + 1], 2));
        }}
        return {{ paths, ends, straightness: m.straightness(paths) }};"""
    theirs = javascript(body, points=points, start=start)
    ours = exact_paths(denoiser, start, steps=60)
    paths = torch.tensor(theirs["paths"]).double().view(len(start), -1, 2).transpose(0, 1)
    torch.testing.assert_close(paths, ours, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        torch.tensor(theirs["ends"]).double(), euler_ends(denoiser, start, 2), rtol=0, atol=1e-3
    )
    assert theirs["straightness"] == pytest.approx(straightness(ours), abs=1e-4)


def test_noise_of_a_shuffled_coupling_has_the_mean_density():
    points = toy_data("two_moons", COUNT).points.double()
    noise = torch.randn(50, 2, generator=generator()).double().clamp(-3.5, 3.5)
    body = """const density = m.shuffledDensity(v.points, m.knnDensity(v.points, 16)), out = [];
        for (let i = 0; i < v.noise.length; i += 2) out.push(density.logRatio(0, v.noise[i], v.noise[i + 1]));
        return out;"""
    theirs = torch.tensor(javascript(body, points=points, noise=noise)).double()
    log = log_density(density_of(KNN(k=16)), noise, Batch(points))
    ours = log.logsumexp(dim=1) - torch.tensor(COUNT).log() + noise.square().sum(dim=1) / 2
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0.03)  # it is read off a table


@pytest.mark.parametrize("count", [1, 2, 7, COUNT])
def test_assignment_costs_what_the_best_one_costs(count):
    points, noise = (torch.randn(count, 2, generator=generator(seed)).double() for seed in (1, 2))
    theirs = torch.tensor(javascript("return m.assignNoise(v.points, v.noise);", points=points, noise=noise)).double()
    theirs = theirs.view(count, 2)
    cost = torch.cdist(points, noise).square()
    assert sorted(theirs.tolist()) == sorted(noise.tolist())
    best = float(cost[linear_sum_assignment(cost.numpy())].sum())
    assert float((points - theirs).square().sum()) == pytest.approx(best, rel=1e-12)


def test_the_diagram_of_an_assignment():
    points = toy_data("checkerboard", COUNT).points.double()
    noise = torch.randn(COUNT - 1, 2, generator=generator()).double()
    theirs = np.array(javascript("return m.diagram(v.points, v.noise);", points=points, noise=noise))
    ours = diagram(points, noise).numpy()
    np.testing.assert_allclose(theirs - theirs.mean(), ours - ours.mean(), atol=1e-9)


def test_the_density_of_assignment_counts_the_diagrams():
    points = toy_data("eight_gaussians", COUNT).points.double()
    batches = [torch.randn(COUNT - 1, 2, generator=generator(seed)).double() for seed in range(3)]
    at = [0.45, -1.2]  # a point of the table
    body = """const density = m.assignmentDensity(v.points);
        for (const noise of v.batches) density.add(noise);
        return Array.from({ length: v.points.length / 2 }, (_, i) => Math.exp(density.logRatio(i, ...v.at)));"""
    theirs = javascript(body, points=points, batches=[batch.flatten().tolist() for batch in batches], at=at)
    winners = [int((diagram(points, batch) - points @ torch.tensor(at).double()).argmin()) for batch in batches]
    count = np.full(COUNT, 0.001)
    np.add.at(count, winners, 1)
    np.testing.assert_allclose(theirs, count, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in GROUPS if name != "five_points"])
def test_the_data_sets_have_as_many_points(name):
    assert len(toy_data(name, COUNT)) == COUNT
