"""Controls: the best setting by the mean over seeds, whose gain it is, and two metrics that disagree."""

from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare import controls, render_page
from immiscible_diffusion.reporting.compare.records import SamplerVariant

FINALS = {"independent": (10.0, 11.0, 9.0), "knn": (5.0, 5.5, 4.5), "shuffled": (9.9, 11.2, 8.9)}


@pytest.fixture
def final(build, power):
    """The record of the last values, with variants (coupling, option, setting): one value for each seed."""

    def make(variants=(), **changes):
        trials = [
            replace(power(name, seed), metrics=tuple(replace(m, frechet=v) for m in power(name, seed).metrics))
            for name, values in FINALS.items()
            for seed, v in enumerate(values)
        ]
        rows = [
            SamplerVariant(name, seed, 20, option, setting, value)
            for (name, option, setting), values in dict(variants).items()
            for seed, value in enumerate(values)
        ]
        return build(trials, sampling_steps=(20,), variants=tuple(rows), **changes)

    return make


def test_the_best_setting_is_by_the_mean_over_seeds_with_the_recipes_own_among_them(final):
    # 2 is best on seed 0 alone, 3 on the mean; every setting of the second option is worse than none.
    comparison = final(
        {
            ("independent", "shift", 2.0): (1.0, 20.0, 20.0),
            ("independent", "shift", 3.0): (6.0, 6.0, 6.0),
            ("independent", "prune", 0.1): (12.0, 12.0, 12.0),
        }
    )
    best = controls.best_setting(comparison, "independent", 20, "shift")
    assert (best.value, best.mean, str(best)) == (3.0, pytest.approx(6.0), "independent with shift 3")
    assert controls.best_setting(comparison, "independent", 20, "prune").value is None
    assert controls.best_setting(comparison, "knn", 20, "shift") is None
    assert controls.options_of(comparison) == ["shift", "prune"]


def test_a_gain_is_called_pairings_only_where_no_control_has_it(final):
    [alone] = controls.remarks(final())
    assert "the gain in Frechet distance at the end of training is more than that of shuffled with 20" in alone
    assert "no shuffled control" not in alone
    [shared] = controls.remarks(final({("independent", "shift", 3.0): (5.2, 5.3, 4.6)}))
    assert "not resolved from a control's with 20 (independent with shift 3" in shared
    assert "not called pairing's" in shared
    [unknown] = controls.remarks(replace(final(), couplings=final().couplings[:2], trials=final().trials[:6]))
    assert "no control was run" in unknown
    bare = replace(final(), couplings=final().couplings[:2], trials=final().trials[:6])
    exact = tuple(replace(entry, preserves_marginal=True) for entry in bare.couplings)
    [known] = controls.remarks(replace(bare, couplings=exact))
    assert "a shuffled control would be independent" in known


def test_a_coupling_at_its_best_grid_is_held_against_the_baseline_at_its_own(final):
    comparison = final({("independent", "shift", 3.0): (5.0, 5.5, 4.5), ("knn", "shift", 3.0): (2.5, 2.75, 2.25)})
    table = controls.sampling_table(comparison).set_index("Coupling")["20 Euler steps"]
    assert "ratio 0.500" in table["KNN"]
    rows = [text for label, text in table.items() if "best shift" in label]
    assert len(rows) == 2
    assert "ratio 0.500" in rows[0]  # the baseline's, to itself as it is
    assert ">2.49<" in rows[1]
    assert "ratio 0.500" in rows[1]  # to the baseline at its best, not as it is: 0.25
    assert "helps" in rows[1]


def test_every_coupling_has_its_own_best_guidance(final, parsed, plots, tmp_path):
    comparison = final(
        {
            ("independent", "guidance", 1.5): (7.0, 7.0, 7.0),
            ("independent", "guidance", 3.0): (8.0, 8.0, 8.0),
            ("knn", "guidance", 1.5): (4.0, 4.0, 4.0),
            ("knn", "guidance", 3.0): (3.5, 3.5, 3.5),
        }
    )
    base, knn = controls.guidance_table(comparison)["20 Euler steps"]
    assert "at 1.5" in base
    assert "at 3" in knn
    assert "ratio 0.500" in knn
    page = render_page(comparison, tmp_path)
    parsed(page)
    assert "Guidance, 20 Euler steps" in plots(page)


def with_pixels(comparison, factor):
    trials = [
        replace(
            t, metrics=tuple(replace(m, pixels=m.value * factor.get((t.coupling, t.seed), 1.0)) for m in t.metrics)
        )
        for t in comparison.trials
    ]
    return replace(comparison, trials=tuple(trials))


def test_metrics_that_disagree_are_named(final, parsed, plots, tmp_path):
    agreed = with_pixels(final(), {})
    assert controls.disagreements(agreed) == []
    both = with_pixels(final(), {("knn", seed): 4.0 + 0.1 * seed for seed in range(3)})
    [line] = controls.disagreements(both)
    assert line.startswith("KNN with 20 Euler steps")
    assert "resolved in features and in pixels" in line
    one = with_pixels(final(), {("knn", seed): 3.0**seed for seed in range(3)})
    assert controls.disagreements(one)[0].endswith("resolved in features.")
    assert controls.disagreements(final()) == []
    page = render_page(both, tmp_path)
    parsed(page)
    assert "At the end of training, in pixels" in plots(page)
    assert "Features and pixels" not in render_page(final(), tmp_path)


def test_a_retuned_baseline_is_held_against_the_retuned_coupling(final):
    # The baseline's best grid reaches what the coupling has as it is, and half of that is within its reach too.
    variants = {("independent", "shift", 3.0): (5.0, 5.5, 4.5), ("knn", "shift", 3.0): (2.5, 2.8, 2.2)}
    found = controls.remarks(final(variants))[0]
    assert "more than that of shuffled and independent with its best shift with 20" in found


def test_only_controls_that_were_run_on_the_same_seeds_count_as_beaten(final):
    comparison = final({("independent", "shift", 3.0): (9.5, 9.5, 9.5)})
    other = [replace(t, seed=t.seed + 9) if t.coupling == "shuffled" else t for t in comparison.trials]
    for changed in (
        replace(comparison, couplings=comparison.couplings[:2], trials=comparison.trials[:6]),
        replace(comparison, trials=tuple(other)),
    ):
        [line] = controls.remarks(changed)
        assert "more than that of independent with its best shift with 20" in line
        assert line.endswith("There is no shuffled control with 20: what its noise alone gains is not known.")
    exact = tuple(replace(entry, preserves_marginal=True) for entry in comparison.couplings)
    assert not any("no shuffled" in line for line in controls.remarks(replace(comparison, couplings=exact)))


def test_pixels_stand_beside_the_sampling_controls(final):
    comparison = with_pixels(final({("independent", "shift", 3.0): (5.0, 5.5, 4.5)}), {})
    variants = tuple(replace(v, pixels=7 * v.frechet) for v in comparison.variants)
    rows = controls.sampling_table(replace(comparison, variants=variants))["20 Euler steps"]
    assert "pixels 9.97" in rows[0]
    assert "pixels 34.9" in rows[1]
