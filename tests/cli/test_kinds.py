"""Parts of a recipe of another kind, from the command line."""

import dataclasses

import pytest

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.cli.options import named_recipe, with_kinds
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
    flow = recipe_from_name("digits-flow")
    recipe, _ = with_kinds(flow, ["--path.kind", "EDMPath", "--loss.kind", "consistencyloss"])
    assert (recipe.path, recipe.loss) == (EDMPath(), ConsistencyLoss())
    assert recipe.sampler == SamplerConfig("consistency", steps=1)
    recipe, _ = with_kinds(recipe_from_name("digits-ddim"), ["--path.kind", "FlowMatchingPath"])
    assert recipe.path == FlowMatchingPath()
    assert recipe.sampler.method == "euler"
    recipe, _ = with_kinds(flow, ["--path.kind", "VPPath"])
    assert recipe.path == VPPath()
    assert recipe.sampler.method == "ddim"


def test_the_kind_that_it_is_changes_nothing():
    flow = recipe_from_name("digits-flow")
    assert with_kinds(flow, ["--model.kind", "MLP", "--path.kind", "FlowMatchingPath"]) == (
        flow,
        [],
    )
    assert isinstance(flow.model, MLP)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match=r"MLP, UNet, DiT, .*, got 'GAN'"):
        with_kinds(recipe_from_name("digits-flow"), ["--model.kind", "GAN"])
    with pytest.raises(ValueError, match="got ''"):
        with_kinds(recipe_from_name("digits-flow"), ["--model.kind"])


def test_combinations_that_cannot_be_are_refused():
    consistency = recipe_from_name("digits-consistency")
    with pytest.raises(ValueError, match="says the sample in one step"):
        dataclasses.replace(consistency, sampler=SamplerConfig("edm"))
    with pytest.raises(ValueError, match="which is not built"):
        dataclasses.replace(consistency, path=EDMPath(time="discrete"))
