"""Adapters in the layouts of diffusers and kohya load and give the same output."""

import dataclasses
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fixtures.stable_diffusion import sd_recipe
from helpers import train
from immiscible_diffusion.applications.stable_diffusion.export import DIFFUSERS, KOHYA, to_kohya
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging
from immiscible_diffusion.applications.stable_diffusion.unet import LoRA


@pytest.fixture(scope="module", params=["sd-lora", "sdxl-lora"])
def run(request, tmp_path_factory, small_sd, small_sdxl):
    """A trained run, its trainer, and the pipeline it started from; alpha is not the rank."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = small_sd if request.param == "sd-lora" else small_sdxl
    recipe = sd_recipe(request.param, pipeline, coupling="knn:k=2", steps=3)
    recipe = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, lora=LoRA(rank=2, alpha=3)),
        optim=dataclasses.replace(recipe.optim, lr=1e-1, warmup_steps=0),
    )
    return folder, train(recipe, folder), pipeline


def predict(trainer, unet):
    """The output of ``unet`` on fixed data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    cond = trainer.task.codec.encode_prompts(["a cat", "a dog"], (16, 16))
    added = None
    if "pooled" in cond:
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
    with torch.no_grad():
        return unet(x, 500, cond["text"], added_cond_kwargs=added).sample


@pytest.mark.parametrize("file", [DIFFUSERS, KOHYA])
def test_both_layouts_load_in_diffusers_with_the_same_output(run, file):
    folder, trainer, pipeline = run
    with silence_hf_logging():
        from diffusers import DiffusionPipeline

        loaded = DiffusionPipeline.from_pretrained(pipeline)
    plain = predict(trainer, loaded.unet)
    with silence_hf_logging():
        loaded.load_lora_weights(folder, weight_name=file)
    expected = predict(trainer, trainer.ema.model.unet)
    assert (expected - plain).abs().max() > 1e-2, "the adapters do something"
    torch.testing.assert_close(predict(trainer, loaded.unet), expected, atol=1e-5, rtol=1e-4)


def test_the_folder_itself_loads(run):
    folder, trainer, pipeline = run
    with silence_hf_logging():
        from diffusers import DiffusionPipeline

        loaded = DiffusionPipeline.from_pretrained(pipeline)
        loaded.load_lora_weights(folder)
    torch.testing.assert_close(predict(trainer, loaded.unet), predict(trainer, trainer.ema.model.unet))


@pytest.mark.parametrize("file", [DIFFUSERS, KOHYA])
def test_metadata_name_the_coupling(run, file):
    with safe_open(run[0] / file, framework="pt") as opened:
        metadata = opened.metadata()
    assert metadata["immiscible_coupling"] == "knn:k=2"
    if file == KOHYA:
        assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "3")
        assert metadata["ss_network_module"] == "networks.lora"


def test_kohya_names_are_kohyas(run):
    folder, trainer, _ = run
    state = load_file(folder / KOHYA)
    sdxl = len(trainer.task.codec.texts) > 1
    block = (
        r"(input_blocks_\d+_1|middle_block_1|output_blocks_\d+_1)"
        if sdxl
        else (r"(down_blocks_\d_attentions_\d|mid_block_attentions_0|up_blocks_\d_attentions_\d)")
    )
    layer = r"transformer_blocks_0_attn[12]_(to_q|to_k|to_v|to_out_0)"
    part = r"(lora_down\.weight|lora_up\.weight|alpha)"
    pattern = re.compile(rf"lora_unet_{block}_{layer}\.{part}")
    assert [name for name in state if not pattern.fullmatch(name)] == []
    assert {float(value) for name, value in state.items() if name.endswith("alpha")} == {3.0}
    down = next(value for name, value in state.items() if name.endswith("lora_down.weight"))
    assert down.shape[0] == 2


@pytest.mark.parametrize(
    ("diffusers", "theirs"),
    [
        ("down_blocks.1.attentions.0.x.to_q", "input_blocks_4_1_x_to_q"),
        ("down_blocks.2.attentions.1.x.to_q", "input_blocks_8_1_x_to_q"),
        ("mid_block.attentions.0.x.to_q", "middle_block_1_x_to_q"),
        ("up_blocks.0.attentions.2.x.to_out.0", "output_blocks_2_1_x_to_out_0"),
        ("up_blocks.1.attentions.0.x.to_q", "output_blocks_3_1_x_to_q"),
    ],
)
def test_blocks_of_sdxl_have_stabilitys_names(diffusers, theirs):
    tensors = to_kohya({f"{diffusers}.lora_A.weight": torch.ones(2, 4)}, 2.0, sdxl=True)
    assert set(tensors) == {f"lora_unet_{theirs}.lora_down.weight", f"lora_unet_{theirs}.alpha"}
