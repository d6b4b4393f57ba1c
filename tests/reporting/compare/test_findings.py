"""Sentences say what the numbers say, also when pairing does not help."""

from dataclasses import replace

from immiscible_diffusion.reporting.compare.estimate import Estimate
from immiscible_diffusion.reporting.compare.findings import (
    findings,
    missing,
    number,
    summary,
    with_interval,
)


def runs(power, faster, **options):
    cells = [power("independent", seed) for seed in range(len(faster))]
    return cells + [power("knn", seed, f, **options) for seed, f in enumerate(faster)]


def test_a_gain_is_stated_with_its_interval(build, power):
    finding = findings(build(runs(power, [1.9, 2.0, 2.1])))[0]
    assert finding.verdict == "helps"
    assert finding.headline.startswith("KNN needs 2.00 times fewer training steps than independent")
    assert "95% interval 1.76 to 2.26, 3 seeds" in finding.headline
    assert "not measured" in finding.detail  # the other sampling_steps, and the control


def test_harm_and_no_difference_are_said_plainly(build, power):
    hurts = findings(build(runs(power, [0.5, 0.51, 0.49])))[0]
    assert hurts.verdict == "hurts"
    assert "KNN hurts at 20 Euler steps: it needs 2.00 times the steps" in hurts.headline
    unresolved = findings(build(runs(power, [0.8, 1.0, 1.25])))[0]
    assert "no difference resolved; speed-up 1.00, 95% interval" in unresolved.headline


def test_one_seed_and_bounds_are_said_plainly(build, power):
    one = findings(build(runs(power, [2.0])))[0]
    assert "speed-up 2.00, one seed; one seed gives no interval" in one.headline
    bounded = findings(build(runs(power, [100.0, 120.0])))[0]
    assert bounded.verdict == "helps"
    assert "needs more than 24.0 times fewer" in bounded.headline
    assert "a bound on 2 of 2 seeds" in bounded.headline


def test_time_floor_and_control_are_mentioned(comparison):
    found = {f.coupling: f for f in findings(comparison)}
    assert set(found) == {"knn:k=16,center=mean", "knn:k=64", "assignment"}
    centerd = found["knn:k=16,center=mean"]
    assert "Speed-up in training time, cost of pairing included: 2.1" in centerd.detail
    assert "both lie within what real data differ from real data by (1.50 to 3.10)" in (
        centerd.detail
    )
    assert "shuffled over the batch, so without pairing, keep 16% at 2 and 25%" in centerd.detail
    assert found["knn:k=64"].verdict == "hurts"
    assert "no shuffled control" in found["assignment"].detail


def test_the_summary_sorts_the_couplings(comparison, empty):
    text = summary(comparison)
    parts = {budget: f"With {budget} Euler steps: " for budget in comparison.sampling_steps}
    assert all(part in text for part in parts.values())
    head = text.partition(parts[20])[2].partition(". With")[0]
    assert "fewer with KNN k=16, centerd and linear assignment, B=256" in head
    assert "more (pairing hurts) with KNN k=64 <raw>" in head
    assert "not measured for KNN k=16, centerd" in summary(empty)
    assert "no coupling" in summary(replace(empty, couplings=empty.couplings[:1]))


def test_what_is_missing_is_named(comparison, partial, empty):
    assert missing(comparison) == []
    assert missing(empty) == ["No run has been evaluated yet."]
    lines = missing(partial)
    assert "KNN k=64 <raw>, seed 2: evaluated up to step 2,000 of 6,000, not finished." in lines
    assert "KNN k=64, shuffled: no run of seeds 0, 1 and 2." in lines
    assert "linear assignment, B=256: no run of seeds 1 and 2." in lines


def test_numbers_and_estimates_read_well():
    shown = [number(v) for v in (0.0, 0.01234, 1.2, 45.46, 123.4, 999.9, 12345.6, -1.5)]
    assert shown == ["0", "0.0123", "1.20", "45.5", "123", "1,000", "12,300", "-1.50"]
    assert with_interval(None) == "-"
    assert with_interval(Estimate(2.0, 1.5, 2.5, 3)) == "2.00 (1.50 to 2.50)"
    assert with_interval(Estimate(14.0, None, None, 3, ">")) == "> 14.0"
    assert with_interval(Estimate(2.0, None, None, 1)) == "2.00 (one seed)"
    assert with_interval(Estimate(2.0, None, None, 2, "~")) == "bounded from both sides"
