"""A run folder of a stranger imports nothing by the coupling that it names."""

import dataclasses
import json

import pytest

from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer


def test_a_run_folder_that_names_code_loads_only_with_leave(tiny, tmp_path, monkeypatch):
    recipe = dataclasses.replace(tiny, coupling="immiscible_diffusion:KNN(k=2)", preview_every=0)
    Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu").train(until=1, quiet=True)
    assert load_run(tmp_path, "cpu", allow_code=True).coupling.k == 2
    with pytest.raises(ValueError, match=r"give --allow-code"):
        load_run(tmp_path, "cpu").coupling  # noqa: B018
    record = json.loads((tmp_path / "recipe.json").read_text())
    calls = []
    monkeypatch.setattr("os.system", lambda command: calls.append(command))
    for name in ("os:system", "os:system(command='true')"):
        (tmp_path / "recipe.json").write_text(json.dumps(record | {"coupling": name}))
        for allow_code in (False, True):
            with pytest.raises(ValueError, match=r"give --allow-code|is no coupling"):
                load_run(tmp_path, "cpu", allow_code=allow_code).coupling  # noqa: B018
    assert not calls
