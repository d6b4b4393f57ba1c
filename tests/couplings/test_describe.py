"""``immiscible describe``, as it is called."""

import json

import pytest

from immiscible_diffusion.cli.main import main


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["describe", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def record(capsys, *arguments: str) -> dict:
    code, text, said = outcome(capsys, *arguments, "--json", "--device", "cpu")
    assert code == 0, said
    return json.loads(text)


def test_the_table_says_what_and_what_for(capsys):
    code, text, said = outcome(capsys, "knn:k=2", "knn:k=254", "--shape", "4,16,16", "--data-count", "1000")
    assert code == 0, said
    for words in ("D = 1,024", "knn:k=254", "pull", "misleads", "share of log N", "torch.randn"):
        assert words in text
    assert "4.54" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_spec_can_be_told_from_another(capsys):
    found = record(capsys, "knn:k=2", "knn:k=254", "--shape", "16x128x128", "--data_count", "100")
    small, large = found["couplings"]
    assert found["dimension"] == 262_144
    assert found["log_data_count"] == pytest.approx(4.605, abs=1e-3)
    assert small["information_budget"] == pytest.approx(0.1931, abs=1e-4)
    assert small["expected"]["pull"] == pytest.approx(0.461, abs=1e-3)
    assert large["expected"]["pull"] == pytest.approx(2.31, abs=1e-2)
    assert large["expected"]["distance_reduction"] < 0.005
    assert not small["preserves_marginal"]
    assert small["cost"]["memory"] < 3


def test_centerd_knn_needs_no_data(capsys):
    plain, centerd = record(capsys, "knn:k=4", "knn:k=4,center=label", "--shape", "3,8,8", "--rms", "0.5")["couplings"]
    assert plain["expected"] == centerd["expected"]
    assert "less their center" in centerd["notes"][0]


def test_independent_and_shuffled(capsys):
    independent, shuffled = record(capsys, "independent", "shuffled:knn:k=4", "--shape", "3,8,8", "--rms", "0.5")[
        "couplings"
    ]
    assert independent["preserves_marginal"]
    assert independent["information_budget"] == shuffled["information_budget"] == 0
    assert shuffled["expected"]["pull"] == 0
    assert shuffled["expected"]["second_moment"] < 0.97
    assert shuffled["expected"]["distance_reduction"] is None
    assert "no pairing is left" in shuffled["notes"][0]


def test_assignment_is_simulated(capsys):
    found, shuffled = record(capsys, "assignment", "shuffled:assignment", "--shape", "3,8,8", "--batch", "64")[
        "couplings"
    ]
    assert found["preserves_marginal"]
    assert found["expected"]["second_moment"] == 1
    assert 1.5 < found["expected"]["pull"] < 3
    assert 0 < found["expected"]["pull_error"] < 0.1
    assert found["cost"]["rows"] == 64
    assert any("stand-in" in note for note in found["notes"])
    assert shuffled["expected"]["second_moment"] == 1
    assert shuffled["expected"]["pull"] == 0


def test_assignment_under_conditions_is_not(capsys):
    names = ["assignment:cond_key=label", "aligned:assignment:cond_key=label"]
    found, aligned = record(capsys, *names, "--shape", "3,8,8")["couplings"]
    assert any("pairs by conditions of the data" in note for note in aligned["notes"])
    assert found["preserves_marginal"]
    assert found["expected"]["second_moment"] == 1
    assert found["expected"]["pull"] is found["cost"] is None
    assert any("pairs by conditions of the data" in note for note in found["notes"])


def test_a_pool_is_a_larger_batch(capsys):
    pooled, whole = (
        record(capsys, name, "--shape", "3,8,8", "--batch", batch)["couplings"][0]
        for name, batch in [("assignment:pool=4", "8"), ("assignment", "32")]
    )
    assert pooled["expected"] == whole["expected"]
    assert pooled["information_budget"] == whole["information_budget"]


@pytest.mark.parametrize(
    "name", ["gaussian_ot:eps=2", "calibrated:knn:k=4", "calibrated:gaussian_ot", "shuffled:gaussian_ot"]
)
def test_what_depends_on_data_says_so(capsys, name):
    code, text, _ = outcome(capsys, name, "--shape", "3,8,8")
    assert code == 0
    assert "depends on the data" in " ".join(text.split())


def test_a_projected_coupling_is_described_by_what_it_pairs(capsys):
    pooled, leading = record(capsys, "projected(pool=4):knn:k=4", "projected(rank=12):knn:k=4", "--shape", "3,8,8")[
        "couplings"
    ]
    [small] = record(capsys, "knn:k=4", "--shape", "3,2,2")["couplings"]
    for found in (pooled, leading):
        assert found["expected"] == small["expected"]
        assert found["information_budget"] == small["information_budget"]
        assert found["cost"] is None
        assert "the 12 numbers it pairs by" in found["notes"][0]
    code, _, said = outcome(capsys, "projected(pool=3):knn:k=4", "--shape", "3,8,8")
    assert code == 2
    assert "multiples of it" in said


@pytest.mark.parametrize("name", ["semidiscrete", "quantile"])
def test_of_a_plan_the_share_is_known(capsys, name):
    [found] = record(capsys, name, "--shape", "3,8,8")["couplings"]
    assert found["preserves_marginal"]
    assert found["expected"]["second_moment"] == 1
    assert found["expected"]["pull"] is None
    assert "log N nats" in found["notes"][0]


def test_gradient_steps_are_simulated_after_what_knows_no_data(capsys):
    names = ["aligned:assignment", "aligned:independent", "independent", "aligned:semidiscrete"]
    after, alone, nothing, unknown = record(capsys, *names, "--shape", "3,8,8", "--batch", "64")["couplings"]
    assert after["expected"]["pull"] > alone["expected"]["pull"] > nothing["expected"]["pull"]
    assert not after["preserves_marginal"]
    assert after["cost"]["rows"] == 64
    assert unknown["expected"] is None


def test_wrappers_that_know_no_data_are_simulated_inside_and_around(capsys):
    names = ["aligned:independent", "aligned:shuffled:knn:k=8", "aligned:knn:k=8", "aligned:aligned:independent"]
    names += ["aligned:knn:k=8,start_step=5", "knn:k=8,start_step=5", "knn:k=8"]
    found = [row["expected"] for row in record(capsys, *names, "--shape", "3,8,8", "--batch", "64")["couplings"]]
    alone, shuffled, after, twice, later, warm, knn = found
    assert shuffled["pull"] == pytest.approx(alone["pull"], abs=0.1)
    assert twice["pull"] > alone["pull"] + 0.1
    assert later == after
    assert warm == knn


def test_too_large_a_batch_is_not_timed(capsys):
    code, text, _ = outcome(capsys, "knn:k=4", "--shape", "65536,1024", "--batch", "8")
    assert code == 0
    assert "too long to time" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "which coupling?"),
        (["knn:k=4"], "--shape 3,32,32"),
        (["knn:k=4", "--shape", "3,a"], "got '3,a'"),
        (["knn:k=4", "--shape", "3,0"], "got '3,0'"),
        (["knn:k=0", "--shape", "3,8"], "k must be a whole number"),
        (["knm", "--shape", "3,8"], "unknown coupling 'knm'"),
        (["no.module:C(k=1)", "--shape", "3,8"], "no.module"),
        (["knn:k=4", "--shape", "3,8", "--rms", "-1"], "rms must be from 0"),
        (["knn:k=4", "--shape", "3,8", "--rms", "nan"], "rms must be from 0"),
        (["knn:k=4", "--shape", "3,8", "--rms", "x"], "--rms: invalid float value: 'x'"),
        (["knn:k=4", "--shap", "3,8"], "unknown option --shap"),
        (["knn:k=4", "--shape", "3,8", "--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["knn:k=4", "--shape", "3,8", "--batch", "0"], "batch must be at least 1"),
        (["knn:k=4", "--shape", "3,8", "--data-count", "1"], "data-count must be at least 2"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, said):
    code, _, error = outcome(capsys, *arguments)
    assert code == 2
    assert said in error
    assert error.strip().count("\n") == 0


def test_help_has_examples(capsys):
    assert main(["describe", "--help"]) == 0
    assert "immiscible describe knn:k=64 --shape" in capsys.readouterr().out


def test_a_matched_start_changes_sampling_alone(capsys):
    plain, matched = record(capsys, "knn:k=4", "matched:knn:k=4", "--shape", "3,8,8")["couplings"]
    assert matched["expected"] == plain["expected"]
    assert any("distribution of its noise" in note for note in matched["notes"])


def test_calibration_keeps_the_information(capsys):
    plain, mapped = record(capsys, "knn:k=4", "calibrated:knn:k=4", "--shape", "3,8,8")["couplings"]
    assert mapped["information_budget"] == plain["information_budget"]
