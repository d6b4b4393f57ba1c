import csv

import pytest

pytest.importorskip("matplotlib")

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.reporting.compare import Comparison, write_report
from immiscible_diffusion.reporting.compare.records import CouplingEntry, Dataset, SampleMetrics, Trial
from immiscible_diffusion.utils.atomic_files import write_json


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder of a comparison of one coupling, twice as fast as the baseline."""
    folder = tmp_path_factory.mktemp("compared")
    trials = [
        Trial(name, seed, tuple(SampleMetrics(s, 5, frechet=1e3 / (s * fast)) for s in (10, 20, 40)))
        for name, fast in (("independent", 1.0), ("knn:k=4", 2.0))
        for seed in (0, 1)
    ]
    comparison = Comparison(
        recipe="digits-flow",
        command="immiscible compare digits-flow",
        note="",
        hardware="1 CPU core",
        date="2026-11-23",
        versions={"torch": "2.13.0"},
        dataset=Dataset("digits", 1797),
        features="pixels (64-d)",
        accuracy=None,
        samples=1000,
        real_samples=1797,
        floor=None,
        sampling_steps=(5,),
        headline_steps=5,
        sampler="euler",
        eval_steps=(10, 20, 40),
        batch_size=256,
        total_steps=40,
        parameters=1000,
        couplings=(CouplingEntry("independent", "independent", baseline=True), CouplingEntry("knn:k=4", "knn:k=4")),
        trials=tuple(trials),
    )
    write_report(comparison, folder)
    return folder


def test_the_page_is_written_anew_from_the_folder_alone(compared, capsys):
    page, before = compared / "report.html", (compared / "report.html").read_bytes()
    page.unlink()
    assert main(["report", str(compared)]) == 0
    assert page.read_bytes() == before
    assert capsys.readouterr().out.strip() == str(page)


def test_tables_alone(compared, tmp_path, capsys):
    page = (compared / "report.html").stat().st_mtime_ns
    assert main(["report", str(compared), "--latex", "--csv", "--out", str(tmp_path)]) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["results.csv", "speedups.csv", "speedups.tex"]
    assert (compared / "report.html").stat().st_mtime_ns == page
    assert len(capsys.readouterr().out.splitlines()) == 3
    with (tmp_path / "speedups.csv").open() as file:
        [last] = [row for row in csv.DictReader(file) if row["seed"] == "all"]
    assert (last["coupling"], float(last["speedup"])) == ("knn:k=4", pytest.approx(2.0))
    assert "5 (headline) & knn:k=4 & 2.00" in (tmp_path / "speedups.tex").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "is not the folder of a comparison"), (["--latex"], "is not the folder of a comparison")],
)
def test_a_folder_without_results_is_refused(tmp_path, capsys, arguments, said):
    assert main(["report", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_comparison_that_was_not_gathered_says_how(tmp_path, capsys):
    write_json(tmp_path / "plan.json", {})
    assert main(["report", str(tmp_path)]) == 2
    assert "--gather" in capsys.readouterr().err


def test_out_is_of_tables(compared, tmp_path, capsys):
    assert main(["report", str(compared), "--out", str(tmp_path)]) == 2
    assert "add --latex or --csv" in capsys.readouterr().err
