"""The benchmark scripts run, on sizes that take a moment; what they measure is not tested."""

import importlib

import pytest
import torch

from helpers import ROOT

SCRIPTS = ROOT / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def test_users_shapes_runs_tiny(script, tmp_path):
    table = tmp_path / "table.md"
    assert script("users_shapes").main(["--tiny", "--repeats", "1", "--markdown", str(table)]) == 0
    text = table.read_text()
    assert "4x8x8, KNN k=64 vs published, float16" in text
    assert "POT emd" in text  # a row, or that it is not installed


def test_what_does_not_fit_is_left_out(script):
    cases = list(script("users_shapes").shape_cases(((16, 21, 60, 104),)))
    left = [case for case in cases if isinstance(case, str)]
    assert len(left) == 2
    assert all("k=64 vs published" in text and "B = 4: needs 4.3 GB" in text for text in left)


def test_coupling_gpu_runs_on_the_cpu(script, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    small = ["--device", "cpu", "--batches", "4,8", "--shape", "1,8,8", "--k", "4"]
    rest = ["--repeats", "2", "--backend", "aot_eager", "--json", str(figures)]
    assert script("coupling_gpu").main([*small, *rest]) == 0
    assert "| KNN k=4 | 8 |" in capsys.readouterr().out
    assert figures.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_coupling_gpu_says_that_there_is_no_gpu(script, capsys):
    assert script("coupling_gpu").main([]) == 2
    said = capsys.readouterr().err.strip()
    assert said == "no CUDA device here; --device cpu runs the same on the CPU"


def test_loading_runs_tiny(script, tmp_path, capsys):
    sizes = ["--rounds", "1", "--batches", "1", "--images", "32"]
    assert script("loading").main([*sizes, "--markdown", str(tmp_path / "table.md")]) in (0, 1)
    assert "| 2 processes |" in (tmp_path / "table.md").read_text() == capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.subprocess
def test_across_ranks_runs_tiny(script, tmp_path):
    small = ["--rows", "4", "--dim", "12", "--sizes", "64", "128", "--repeats", "1"]
    assert script("across_ranks").main([*small, "--markdown", str(tmp_path / "table.md")]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| 4 | nodes of 2 |" in text  # 2 x 4 samples of 12 numbers, there, noise too, and a byte of mask
    assert f"{2 * 4 * (12 * 12 + 1) / 1e6:.1f} MB" in text
    assert "| 1,024 | nodes of 8 | 32 |" in text


def test_semidiscrete_fit_runs_tiny(script, monkeypatch, capsys):
    benchmark = script("semidiscrete_fit")
    monkeypatch.setattr("immiscible_diffusion.couplings.semidiscrete_fit.EVERY", 20)
    monkeypatch.setattr(benchmark, "TOLERANCE", 0.05)
    benchmark.digits(noises=1 << 14)
    assert "| to 0.05 |" in capsys.readouterr().out


def test_bijection_runs_tiny(script, tmp_path, capsys):
    assert script("bijection").main(["--sizes", "300", "--markdown", str(tmp_path / "table.md")]) == 0
    assert "| 300 | table, 8 sweeps |" in capsys.readouterr().out
