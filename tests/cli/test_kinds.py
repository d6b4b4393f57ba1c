"""Parts of a recipe of another kind, from the command line."""

import dataclasses

import pytest

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.cli.options import named_recipe
from immiscible_diffusion.diffusion.losses import ConsistencyLoss
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models import MLP, DiT
from immiscible_diffusion.recipes import recipe_from_name


def test_a_network_of_another_kind_and_its_options(tmp_path):
    words = ["--model.kind", "dit", "--tiny", "--model.patch", "2", "--model.depth", "1"]
    recipe, rest = named_recipe("digits-flow", words)
    assert isinstance(recipe.model, DiT)
    assert rest == ["--model.patch", "2", "--model.depth", "1"]
    out = str(tmp_path / "out")
    assert main(["train", "digits-flow", *words, "--device", "cpu", "--out", out]) == 0


def test_path_and_loss_of_other_kinds_come_with_a_sampler_that_fits():
    kinds = ["--path.kind", "EDMPath", "--loss.kind=consistencyloss"]
    recipe, _ = named_recipe("digits-flow", kinds)
    assert (recipe.path, recipe.loss) == (EDMPath(), ConsistencyLoss())
    assert recipe.sampler == SamplerConfig("consistency", steps=1)
    recipe, _ = named_recipe("digits-ddim", ["--path.kind", "FlowMatchingPath"])
    assert recipe.path == FlowMatchingPath()
    assert recipe.sampler.method == "euler"
    recipe, _ = named_recipe("digits-flow", ["--path.kind", "VPPath"])
    assert recipe.path == VPPath()
    assert recipe.sampler.method == "ddim"


def test_the_kind_that_it_is_changes_nothing():
    flow = recipe_from_name("digits-flow")
    same = ["--model.kind", "MLP", "--path.kind", "FlowMatchingPath"]
    assert named_recipe("digits-flow", same) == (flow, [])
    assert isinstance(flow.model, MLP)


@pytest.mark.parametrize("words", [["--model.kind", "GAN"], ["--model.kind"]])
def test_unknown_kinds_are_an_error_with_the_known_ones(capsys, words):
    assert main(["train", "digits-flow", *words]) == 2
    assert "--model.kind" in capsys.readouterr().err


def test_combinations_that_cannot_be_are_refused():
    consistency = recipe_from_name("digits-consistency")
    with pytest.raises(ValueError, match=r"needs sampler\.method consistency"):
        dataclasses.replace(consistency, sampler=SamplerConfig("edm"))
    with pytest.raises(ValueError, match="needs continuous noise levels"):
        dataclasses.replace(consistency, path=EDMPath(time="discrete"))
