"""The model card names the coupling; publishing is refused early or fails with a way on."""

import dataclasses
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from fixtures.stable_diffusion import sd_recipe
from helpers import train
from immiscible_diffusion.applications.stable_diffusion.config import StableDiffusionCodec
from immiscible_diffusion.applications.stable_diffusion.export import check_before, model_card, push
from immiscible_diffusion.applications.stable_diffusion.unet import LoRA
from immiscible_diffusion.recipes import recipe_from_name


def front_matter(card):
    assert card.startswith("---\n")
    return card.split("---\n")[1]


@pytest.mark.parametrize("coupling", ["knn:k=64", "assignment:across_ranks=true"])
def test_the_card_names_the_coupling_and_how_to_load(coupling):
    recipe = dataclasses.replace(recipe_from_name("imagenet-sd-finetune"), coupling=coupling)
    recipe = dataclasses.replace(recipe, task=recipe.task.replace(push_to_hub="me/mine"))
    card = model_card(recipe, 5000)
    assert f"noise paired with data by `{coupling}`" in card
    assert f"| coupling | `{coupling}` |" in card
    assert "base_model: CompVis/stable-diffusion-v1-4" in front_matter(card)
    assert 'from_pretrained("me/mine")' in card
    assert "| steps | 5,000 of 5,000 |" in card
    assert "| learning rate | 1e-05 |" in card


def test_a_card_without_pairing_says_so():
    card = model_card(recipe_from_name("imagenet-sd-scratch"), 10)
    assert "drawn independently of the data (no pairing)" in card
    assert "noise paired" not in card


def test_the_card_of_adapters_says_how_to_load_them():
    recipe = dataclasses.replace(recipe_from_name("sd-lora"), coupling="knn:k=2")
    assert recipe.model.lora == LoRA(rank=16)
    card = model_card(recipe, 1500)
    assert "- lora" in front_matter(card)
    assert "load_lora_weights" in card
    assert "knn:k=2" in card


def test_a_local_pipeline_is_no_base_model_of_the_hub(small_sd):
    recipe = recipe_from_name("imagenet-sd-scratch")
    task = recipe.task.replace(codec=StableDiffusionCodec(str(small_sd)))
    assert "base_model" not in model_card(dataclasses.replace(recipe, task=task), 1)


def test_publishing_without_a_token_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    recipe = recipe_from_name("sd-lora")
    recipe = dataclasses.replace(recipe, task=recipe.task.replace(push_to_hub="me/mine"))
    with pytest.raises(ValueError, match=r"needs a token.*hf auth login"):
        check_before(recipe)


def test_publishing_offline_says_how_to_do_it_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"was not published as me/mine.*hf upload me/mine"):
        push(tmp_path, "me/mine")


def test_a_run_is_published_with_its_card_after_the_last_step(small_sd, tmp_path, monkeypatch):
    recipe = sd_recipe(
        "imagenet-sd-scratch", small_sd, coupling="knn:k=4", push_to_hub="me/mine", steps=2, checkpoint_every=1
    )
    calls, files_sent = [], []

    class Api:
        def create_repo(self, name, exist_ok):
            calls.append((name, None))

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            calls.append((repo_id, (tmp_path / "README.md").read_text(encoding="utf-8")))
            files = [str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()]
            files_sent.extend(filter_repo_objects(files, allow_patterns=allow_patterns))

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "token")
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    train(recipe, tmp_path)
    (created, _), (uploaded, card) = calls
    assert created == uploaded == "me/mine"
    assert "noise paired with data by `knn:k=4`" in card
    weights = [name for name in files_sent if name.endswith(".safetensors")]
    assert weights.count("unet/diffusion_pytorch_model.safetensors") == 1
    assert {Path(name).parts[0] for name in weights} == {"unet", "vae", "text_encoder"}
