"""The tables of the prediction, from records that take a moment."""

import csv
import json

from reproduce.prediction import tables


def record(first):
    """Every coupling as the baseline, but the first has distance ``first`` at once."""
    known = {"loss": 1.0, "noisy": 1.0, "effective": 50.0, "information": 0.5, "kl": 0.2}
    rows = [
        {
            "coupling": number,
            "seed": seed,
            "start": start,
            "sampling_steps": sampling_steps,
            "step": step,
            "frechet": first if number == 1 and step == 60 else 4.0 / step,
        }
        for number in range(len(tables.COUPLINGS))
        for seed in (0, 1)
        for start in ("normal", "matched")
        for sampling_steps in tables.SAMPLING_STEPS
        for step in (60, 120, 200)
    ]
    return {"set": "digits", "known": [known] * len(tables.COUPLINGS), "quality": rows}


def test_bounds_are_marked_and_what_preserves_the_marginal_has_no_kl(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tables, "REPEATS", 5)
    (tmp_path / "digits.json").write_text(json.dumps(record(0.001)))
    assert tables.write_tables(tmp_path, None) == 0
    output = capsys.readouterr().out
    assert f"| digits | {tables.COUPLINGS[1]} | 0% | >= 3.33 |" in output
    assert "| digits | assignment | 0% | 1.00 |" in output
    with (tmp_path / "points.csv").open() as file:
        rows = {row["coupling"]: row for row in csv.DictReader(file)}
    assert rows[tables.COUPLINGS[1]]["bounded 5 normal"] == "2"
    assert rows["assignment"]["bounded 5 normal"] == "0"
    assert (rows["assignment"]["kl"], rows["knn:k=4"]["kl"]) == ("0", "0.2")
    assert (rows["assignment"]["information"], rows["knn:k=4"]["information"]) == ("0.7", "0.5")
