from immiscible_diffusion.analysis.advice import KNOWN, advice


def entry(name, effective, information=0.0, kl=(0.0, 0.01), estimate=""):
    def mean(value, error=0.0):
        return {"value": value, "error": error}

    levels = [{"t": t, "effective": mean(effective * t)} for t in (0.5, 0.98, 1.0)]
    noise = {
        "information": mean(information),
        "kl": mean(*kl),
        "images": 2000,
        "estimate": estimate,
    }
    return {
        "name": name,
        "miscibility": {"levels": levels, "candidates": mean(2000)},
        "noise": noise,
    }


def said(*entries, images=2000):
    return advice({"couplings": list(entries), "data": {"images": images}})


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
    assert said({"name": "mine", "miscibility": None, "noise": None})["sentences"] == [KNOWN]
