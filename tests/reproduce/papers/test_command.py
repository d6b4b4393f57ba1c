"""The script of the papers' measurements, on inputs that take a moment."""

import importlib

import pytest
import torch

from immiscible_diffusion import KNN
from reproduce.papers.measurements import Extent, papers_measurements


@pytest.fixture
def script():
    threads = torch.get_num_threads()
    yield importlib.import_module("reproduce.papers.__main__")
    torch.set_num_threads(threads)


def test_where_a_curve_passes_a_figure(script):
    found = list(script.crossings(lambda scale: scale / (1 + scale**2), 0.4))
    assert [scale for _, scale in found] == pytest.approx([0.5, 2])
    [(word, scale)] = script.crossings(lambda scale: scale / (1 + scale**2), 0.6)
    assert word.startswith("never reached; nearest (")
    assert scale == pytest.approx(1, rel=0.05)


def test_reduction_by_assignment_at_any_scale_is_that_of_scaled_data(script):
    data = script.unit(torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    at = script.assigned_at(data, 32)
    assert script.assigned_at(0.5 * data, 32)(2.0) == pytest.approx(at(1.0), rel=1e-4)
    assert 0 < at(0.1) < at(1.0)


def test_tables(script):
    data = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    extent = Extent(batch_sizes=(8,), count=40, images=4, points=10)
    for section in papers_measurements(data, KNN(4), extent=extent):
        text = script.markdown(section)
        assert text.startswith(f"### {section['title']}\n")
        columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
        assert columns == {6}


def test_data_are_needed(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--parts", "map"])
    assert "--data FOLDER is needed" in capsys.readouterr().err
