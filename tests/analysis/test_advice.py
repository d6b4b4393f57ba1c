from immiscible_diffusion.analysis.advice import KNOWN, advice


def mean(value, error=0.0):
    return {"value": value, "error": error}


def entry(name, effective, information=0.0, kl=(0.0, 0.01), estimate="", gap=0.0):
    levels = [
        {"t": t, "effective": mean(effective * t), "entropy": mean(3.0), "surprise": mean(3 + gap)}
        for t in (0.5, 0.98, 1.0)
    ]
    noise = {
        "information": mean(information),
        "kl": mean(*kl),
        "images": 2000,
        "estimate": estimate,
    }
    return {
        "name": name,
        "miscibility": {"levels": levels, "candidates": mean(2000), "estimate": estimate},
        "noise": noise,
    }


def said(*entries, images=2000, masked=False):
    return advice({"couplings": list(entries), "data": {"images": images, "masked": masked}})


def test_it_leads_with_the_mixing_and_recommends_nothing():
    found = said(entry("independent", 1990))
    assert "may come from 1950 of 2000 data" in found["facts"][0]
    assert found["sentences"][-1] == KNOWN
    assert found["recommends"] is False


def test_distortion_is_named_with_its_remedy_where_it_is_resolved():
    clear, lost = entry("knn:k=4", 900, 0.5, (0.4, 0.01)), entry("knn:k=2", 900, 0.1, (0.4, 0.3))
    text = " ".join(said(clear, lost)["sentences"])
    assert "knn:k=4: its noise is 0.40 nats from N(0, I)" in text
    assert "calibrated:knn:k=4" in text
    assert "calibrated:knn:k=2" not in text
    mapped = said(entry("calibrated:knn:k=4", 900, 0.5, (0.4, 0.01)))["sentences"][0]
    assert "calibrated:calibrated" not in mapped


def test_estimates_are_called_so():
    text = " ".join(said(entry("assignment", 60, 3.0, estimate="from pairs"))["facts"])
    assert "3.00 (an estimate) of the 7.6 nats" in text


def test_of_an_estimate_that_failed_no_figure_is_given():
    """Surprise is entropy and information is not below 0, whatever the true density."""
    bad = (
        entry("assignment", 60, 3.0, estimate="from pairs", gap=0.6),
        entry("assignment", 60, -2.25, (5.09, 0.2), estimate="from pairs"),
    )
    bad[1]["noise"]["information"]["error"] = 0.2
    for one in bad:
        found = said(one, entry("knn:k=4", 900, 0.5))
        text = " ".join(found["facts"] + found["sentences"][:-1])
        assert "assignment: its density could not be estimated" in text
        assert not {"5.09", "3.00", "60", "calibrated:assignment"} & set(text.split())
        assert text.startswith("With knn:k=4 a noisy point")
    assert len(said(bad[0])["facts"]) == 1
    fine = said(entry("assignment", 60, 3.0, estimate="from pairs", gap=-0.4))
    assert "tells 3.00 (an estimate)" in " ".join(fine["facts"])
    exact = said(entry("knn:k=4", 60, 3.0, gap=0.6))  # by chance: a closed form cannot fail
    assert "tells 3.00" in " ".join(exact["facts"])


def test_a_control_is_given_no_remedy():
    text = said(entry("shuffled:knn:k=16", 900, 0.0, (0.6, 0.01)))["sentences"][0]
    assert text == "shuffled:knn:k=16: its noise is 0.60 nats from N(0, I), where sampling starts."


def test_under_a_mask_the_remedies_are_said_to_be_of_whole_data():
    text = said(entry("knn:k=16", 900, 0.5, (0.6, 0.01)), masked=True)["sentences"][0]
    assert "train with" not in text
    assert "are of whole data alone" in text


def test_small_sets_are_told_that_they_are():
    assert any(
        "12 data only" in line for line in said(entry("independent", 9), images=12)["sentences"]
    )


def test_missing_figures_are_passed_over():
    broken = entry("knn:k=4", 900)
    broken["noise"]["kl"]["value"] = None
    broken["noise"]["information"]["value"] = float("nan")
    assert said(broken)["sentences"] == [KNOWN]
    assert len(said(broken)["facts"]) == 1
    broken["miscibility"]["levels"][1]["effective"]["value"] = None
    assert said(broken)["facts"] == []
    broken["noise"]["information"]["value"] = 0.5
    assert "tells 0.50 of the 7.6 nats that tell all data apart." in said(broken)["facts"][0]
    assert said({"name": "mine", "miscibility": None, "noise": None})["sentences"] == [KNOWN]
