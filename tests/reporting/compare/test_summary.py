"""Verdicts, and that the evidence and what is missing are named."""

from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare.speedup import Verdict
from immiscible_diffusion.reporting.compare.summary import findings, missing, summary
from immiscible_diffusion.reporting.compare.tables import interval_text
from immiscible_diffusion.reporting.html import number
from immiscible_diffusion.utils.statistics import Interval, mean_interval


def runs(power, faster):
    trials = [power("independent", s) for s in range(len(faster))]
    return [*trials, *(power("knn", s, f) for s, f in enumerate(faster))]


@pytest.mark.parametrize(
    ("faster", "verdict", "evidence"),
    [
        ([2.0, 2.1, 1.9], "helps", "2.00 (1.76 to 2.26)"),
        ([0.5, 0.51, 0.49], "hurts", "0.500 (0.476 to 0.525)"),
        ([0.8, 1.0, 1.25], "unresolved", "1.00 (0.574 to 1.74)"),
        ([2.0], "unresolved", "2.00 (one seed)"),
        ([100.0, 120.0], "helps", "> 24.0"),
    ],
)
def test_the_verdict_is_that_of_the_interval(build, power, faster, verdict, evidence):
    [finding] = findings(build(runs(power, faster)))
    assert finding.verdict.value == verdict
    assert evidence in finding.evidence


def test_floor_and_control_are_named(comparison):
    found = {f.coupling: f for f in findings(comparison)}
    assert set(found) == {"knn:k=16,center=mean", "knn:k=64", "assignment"}
    assert "The floor (1.5 to 3.1" in found["knn:k=16,center=mean"].evidence
    assert "keeps 16% at 2, 25% at 5" in found["knn:k=16,center=mean"].evidence
    assert found["knn:k=64"].verdict is Verdict.HURTS
    assert "No shuffled control" in found["assignment"].evidence


def test_the_summary_sorts_the_couplings_by_verdict(comparison, empty):
    text = summary(comparison)
    head = text.partition("With 20 Euler steps: ")[2].partition("\n")[0]
    assert head.startswith("helps: KNN k=16, centerd, linear assignment, B=256; hurts: KNN k=64")
    assert "not measured: KNN k=16, centerd" in summary(empty)
    assert "no coupling" in summary(replace(empty, couplings=empty.couplings[:1]))


def test_missing_trials_are_named(comparison, partial, empty):
    assert missing(comparison) == []
    assert len(missing(empty)) == 1
    lines = missing(partial)
    assert "KNN k=64 <raw>, seed 2: evaluated up to step 2,000 of 6,000, not finished." in lines
    assert "KNN k=64, shuffled: no trial of seed 0, 1, 2." in lines
    assert "linear assignment, B=256: no trial of seed 1, 2." in lines


def test_numbers_and_intervals_read_well():
    texts = [number(v) for v in (0.0, 0.01234, 1.2, 45.46, 123.4, 999.9, 12345.6, -1.5, None)]
    assert texts == ["0", "0.0123", "1.20", "45.5", "123", "1,000", "12,300", "-1.50", "-"]
    assert interval_text(None) == "-"
    assert interval_text(Interval(2.0, 1.5, 2.5, 3, 1)) == "2.00 (1.50 to 2.50)"
    assert interval_text(Interval(14.0, 0, float("inf"), 3, 1), ">") == "> 14.0"
    assert interval_text(mean_interval([2.0])) == "2.00 (one seed)"
    assert interval_text(Interval(2.0, 0, 1, 2, 1), "~") == "bounded from both sides"
