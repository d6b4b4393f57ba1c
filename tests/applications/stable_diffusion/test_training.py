"""Stable Diffusion's recipes through the one training loop, on a pipeline of a few weights."""

import dataclasses
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from fixtures.stable_diffusion import sd_recipe
from helpers import assert_same_weights, train, weights
from immiscible_diffusion.applications.stable_diffusion.latent_encoding import encode
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging
from immiscible_diffusion.applications.stable_diffusion.unet import LoRA
from immiscible_diffusion.cli.sample import main as sample
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.integrations import pull
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_json

RECIPES = ["imagenet-sd-scratch", "imagenet-sd-finetune", "sd-inpaint", "sd-outpaint", "coco-sd"]


def trainer_of(recipe, folder):
    return Trainer(recipe, RunDir.open(folder, recipe), device="cpu")


def first_pairs(trainer, count=3):
    with trainer.paired_loader() as loader:
        return list(islice(loader, count))


# -- what is paired -------------------------------------------------------------------------------


def test_noise_is_paired_with_latents_and_text_follows_its_sample(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, coupling="knn:k=64", batch_size=32)
    trainer = trainer_of(recipe, tmp_path)
    assert trainer.task.codec.shape(trainer.task.dataset.shape) == (4, 4, 4)
    prompts = trainer.task.codec.encode_prompts(trainer.task.dataset.class_names)["text"]
    for data, noise, cond in first_pairs(trainer):
        assert data.shape == noise.shape == (32, 4, 4, 4)
        assert pull(data, noise).mean() > 1.2
        torch.testing.assert_close(cond["text"], prompts[cond["label"]])
        assert "tokens" not in cond


def test_data_text_and_start_are_the_same_for_every_coupling(small_sd, tmp_path):
    seen = {}
    for coupling in ("independent", "knn:k=4", "assignment"):
        recipe = sd_recipe("sd-inpaint", small_sd, coupling=coupling)
        trainer = trainer_of(recipe, tmp_path / coupling[:3])
        first = list(trainer.run.model.state_dict().values())
        seen[coupling] = (first_pairs(trainer), first, trainer.validation)
    reference, start, validation = seen.pop("independent")
    for pairs, first, other in seen.values():
        assert all(torch.equal(a, b) for a, b in zip(first, start, strict=True))
        pairs_of_batches = zip(other, validation, strict=True)
        assert all(torch.equal(one.data, two.data) for one, two in pairs_of_batches)
        for (data, noise, cond), (data_0, noise_0, cond_0) in zip(pairs, reference, strict=True):
            assert torch.equal(data, data_0)
            assert not torch.equal(noise, noise_0)
            assert cond.keys() == cond_0.keys() == {"text", "label", "inpaint_mask", "masked_latents"}
            assert all(torch.equal(cond[name], cond_0[name]) for name in cond)


@pytest.mark.parametrize("name", ["imagenet-sd-scratch", "sd-inpaint"])
def test_k_of_one_gives_the_weights_of_independent_noise(small_sd, tmp_path, name):
    for folder, coupling in (("plain", "independent"), ("one", "knn:k=1")):
        train(sd_recipe(name, small_sd, coupling=coupling, steps=2), tmp_path / folder)
    assert_same_weights(tmp_path / "plain", tmp_path / "one")


def test_moments_are_of_latents(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, coupling="knn:k=4,center=mean")
    data = dataclasses.replace(recipe.task.data, flip=False)
    recipe = dataclasses.replace(recipe, task=recipe.task.replace(data=data))
    trainer = trainer_of(recipe, tmp_path)
    latents = trainer.task.codec.encode(trainer.task.dataset.batch(torch.arange(64))).data
    center, mean = trainer.coupling.center.mean, latents.mean(0)
    drawn = 0.9 / 64**0.5  # of the posterior's deviation, which is about 1, in a mean of 64
    assert center.shape == (4, 4, 4)
    assert (center - mean).abs().max() < 5 * drawn


def test_pairing_in_the_mask_only(small_sd, tmp_path):
    recipe = sd_recipe("sd-inpaint", small_sd, coupling="knn:k=64", batch_size=32)
    inpainting = dataclasses.replace(recipe.task.inpainting, pair_masked_region=True)
    recipe = dataclasses.replace(recipe, task=recipe.task.replace(inpainting=inpainting))
    trainer = trainer_of(recipe, tmp_path)
    inside, outside = [], []
    for data, noise, cond in first_pairs(trainer, 20):
        mask = cond["inpaint_mask"].bool()
        inside.append(pull(data, noise, mask=mask).mean())
        outside.append(pull(data, noise, mask=~mask).mean())
    assert torch.stack(inside).mean() > 1
    assert abs(torch.stack(outside).mean()) < 5 / (20 * 32) ** 0.5


def test_dropped_prompts_are_the_empty_one(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, cond_drop_prob=0.4, batch_size=64)
    trainer = trainer_of(recipe, tmp_path)
    empty = trainer.task.codec.empty_prompt["text"]
    batch = first_pairs(trainer, 1)[0]
    cond, seen = batch.cond, trainer.task.drop_conditions(batch.cond, batch.rng)["text"]
    hidden = (seen == empty).flatten(1).all(1)
    assert 0.2 < hidden.float().mean() < 0.6
    assert torch.equal(seen[~hidden], cond["text"][~hidden])
    assert torch.equal(seen, trainer.task.drop_conditions(cond, batch.rng)["text"])


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_becomes_a_pipeline_of_diffusers(small_sd, tmp_path, name):
    recipe = sd_recipe(name, small_sd, coupling="knn:k=4")
    trainer = train(recipe, tmp_path)
    with silence_hf_logging():
        from diffusers import DiffusionPipeline, UNet2DConditionModel
        from diffusers.training_utils import EMAModel

        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
        average = EMAModel.from_pretrained(tmp_path / "unet_ema", UNet2DConditionModel)
    averaged = trainer.ema.model.unet.state_dict()
    for key, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, averaged[key])
    assert average.optimization_step == 4
    mine_and_theirs = zip(trainer.ema.model.parameters(), average.shadow_params, strict=True)
    for mine, theirs in mine_and_theirs:
        assert torch.equal(mine, theirs)
    assert pipeline.scheduler.config.beta_schedule == "scaled_linear"
    if "paint" in name:
        assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline"
        assert pipeline.unet.config.in_channels == 9
        picture = torch.rand(1, 3, 8, 8)
        more = {"image": picture, "mask_image": (picture[:, :1] > 0.5).float()}
    else:
        assert type(pipeline).__name__ == "StableDiffusionPipeline"
        more = {}
    pipeline.set_progress_bar_config(disable=True)
    size = {"num_inference_steps": 2, "output_type": "pt"}  # of the size it was trained at
    assert pipeline("a cat", **size, **more).images.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", ["imagenet-sd-scratch", "sd-inpaint"])
def test_a_run_that_is_a_pipeline_too_is_sampled_as_a_run(small_sd, tmp_path, name):
    recipe = sd_recipe(name, small_sd)
    train(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "model_index.json").is_file()
    common = [str(tmp_path / "run"), "--count", "3", "--seed", "7", "--device", "cpu"]
    assert sample([*common, "--to", str(tmp_path / "images"), "--batch-size", "2"]) == 0
    assert sample(common) == 0
    [series] = [path for path in (tmp_path / "run" / "images").iterdir() if path.is_dir()]
    one, other = (next(SampleFolder(path).in_batches()) for path in (tmp_path / "images", series))
    assert one.shape == (3, 3, *one.shape[2:])
    assert (one - other).abs().max() <= 1.01 / 127.5, "but for rounding in other batches"


def test_there_is_no_pipeline_before_the_end(small_sd, tmp_path):
    """And ``unet/`` is then the weights as they are, as diffusers' script has it."""
    recipe = sd_recipe("imagenet-sd-scratch", small_sd)
    trainer = train(recipe, tmp_path, until=2)
    assert not (tmp_path / "model_index.json").exists()
    state = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(state["conv_in.weight"], trainer.run.model.unet.conv_in.weight)
    train(recipe, tmp_path)
    assert (tmp_path / "model_index.json").exists()
    longer = dataclasses.replace(recipe, steps=6)
    train(longer, tmp_path, until=5)
    assert not (tmp_path / "model_index.json").exists()


@pytest.mark.parametrize("name", ["imagenet-sd-scratch", "sd-outpaint", "sd-lora"])
def test_resumed_equals_uninterrupted_bit_for_bit(small_sd, tmp_path, name):
    changes = {"coupling": "knn:k=4,center=mean", "cond_drop_prob": 0.2}
    if name == "imagenet-sd-scratch":
        recipe = recipe_from_name(name)
        changes["loss"] = dataclasses.replace(recipe.loss, noise_offset=0.1, input_perturbation=0.1)
    recipe = sd_recipe(name, small_sd, **changes)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", until=3)
    train(recipe, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_only_adapters_are_in_checkpoint_average_and_weights(small_sd, tmp_path):
    trainer = train(sd_recipe("sd-lora", small_sd), tmp_path)
    state = RunDir(tmp_path).load_checkpoint()
    assert all("lora_" in name for name in (*state["model"], *weights(tmp_path)))
    assert len(state["ema"]["shadow_params"]) == len(state["model"])
    before = load_file(small_sd / "unet" / "diffusion_pytorch_model.safetensors")
    after = trainer.run.model.unet.state_dict()
    assert torch.equal(after["conv_in.weight"], before["conv_in.weight"])
    assert any(value.abs().max() > 0 for name, value in weights(tmp_path).items() if "_B" in name)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("name", ["sd-inpaint", "sd-lora"])
def test_half_precision_of_frozen_parts_trains(small_sd, tmp_path, name):
    trainer = train(sd_recipe(name, small_sd, mixed_precision="bf16", preview_every=4), tmp_path)
    assert trainer.task.codec.dtype == torch.bfloat16
    assert {w.dtype for w in trainer.run.model.parameters() if w.requires_grad} == {torch.float32}
    frozen = {w.dtype for w in trainer.run.model.parameters() if not w.requires_grad}
    assert frozen == ({torch.bfloat16} if name == "sd-lora" else set())
    assert (tmp_path / "samples" / "step_000004.png").exists()


def test_a_run_in_half_precision_is_a_whole_pipeline(small_sd, tmp_path, fresh_accelerate):
    """The frozen parts are published as they were, not in half."""
    from diffusers import DiffusionPipeline

    train(sd_recipe("imagenet-sd-scratch", small_sd, mixed_precision="bf16"), tmp_path)
    with silence_hf_logging():
        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a", num_inference_steps=2, output_type="pt").images.isfinite().all()
    before = load_file(small_sd / "vae" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "path", [VPPath("scaled_linear", "v", zero_snr=True), FlowMatchingPath()], ids=["snr", "flow"]
)
def test_the_published_scheduler_is_of_the_path(small_sd, tmp_path, path):
    from diffusers import DiffusionPipeline

    sampler = SamplerConfig("ddim" if isinstance(path, VPPath) else "euler", 2)
    train(sd_recipe("imagenet-sd-scratch", small_sd, path=path, sampler=sampler), tmp_path)
    with silence_hf_logging():
        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a", num_inference_steps=2, output_type="pt").images.isfinite().all()
    if isinstance(path, VPPath):
        assert float(pipeline.scheduler.alphas_cumprod[-1]) < 1e-6
        assert pipeline.scheduler.config.timestep_spacing == "trailing"
    else:
        assert pipeline.scheduler.config.prediction_type == "flow_prediction"


def test_scaled_latents_are_undone_by_the_published_vae(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, scaling=DataScaling(2.0), steps=2)
    train(recipe, tmp_path)
    assert read_json(tmp_path / "vae" / "config.json")["scaling_factor"] == pytest.approx(1.8)
    with pytest.raises(ValueError, match=r"leave scaling\.factor 1"):
        sd_recipe("sd-lora", small_sd, scaling=DataScaling(2.0))


def test_weights_of_a_run_go_on_with_its_path_whatever_the_codec_says(small_sd, tmp_path):
    v = VPPath("scaled_linear", "v", beta_start=0.00085, beta_end=0.012)
    first = sd_recipe("imagenet-sd-scratch", small_sd, path=v, steps=2)
    train(first, tmp_path / "first")
    tune = sd_recipe("imagenet-sd-finetune", small_sd, steps=2)
    model = dataclasses.replace(tune.model, pretrained=str(tmp_path / "first"))
    train(dataclasses.replace(tune, model=model, path=v), tmp_path / "tuned")
    with pytest.raises(ValueError, match="prediction_type v_prediction"):
        train(dataclasses.replace(tune, model=model), tmp_path / "wrong")
    flow = dataclasses.replace(tune, path=FlowMatchingPath(), sampler=SamplerConfig("euler", 2))
    with pytest.raises(ValueError, match="a FlowMatchingPath needs"):
        train(flow, tmp_path / "flow")


def test_inpainting_conditions_are_those_of_the_image(small_sd, tmp_path):
    task = trainer_of(sd_recipe("sd-inpaint", small_sd), tmp_path).task
    rows = torch.arange(len(task.dataset))
    cond = task.conditions(rows.tolist())
    assert torch.equal(cond["label"], task.dataset.batch(rows).cond["label"])
    text = task.codec.encode_prompts(task.dataset.texts(rows))["text"]
    torch.testing.assert_close(cond["text"], text)


def test_adapters_alone_cannot_learn_to_see_a_hole(small_sd, tmp_path):
    recipe = sd_recipe("sd-inpaint", small_sd)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lora=LoRA()))
    with pytest.raises(ValueError, match="would not see the"):
        train(recipe, tmp_path)


def test_training_lowers_the_loss(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, steps=120, validate_every=5, checkpoint_every=120)
    run_dir = train(recipe, tmp_path).run_dir
    losses = [record["loss"] for record in run_dir.records("validation")]
    assert losses[-1] < 0.9 * losses[0]


def test_sdxl_trains_with_adapters(small_sdxl, tmp_path):
    recipe = sd_recipe("sdxl-lora", small_sdxl, coupling="knn:k=2")
    trainer = train(recipe, tmp_path)
    (_, _, cond) = first_pairs(trainer, 1)[0]
    assert cond["pooled"].shape == (8, 6)
    assert cond["time_ids"][0].tolist() == [8, 8, 0, 0, 8, 8]


def test_latents_from_a_folder_are_those_of_the_vae(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, coupling="knn:k=4")
    config = dataclasses.replace(recipe.task.data, flip=False)
    with silence_hf_logging():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(small_sd, subfolder="vae").eval()
    encode(load_images(config), vae, tmp_path / "latents")
    recipe = dataclasses.replace(recipe, task=recipe.task.replace(latents=str(tmp_path / "latents")))
    trainer = train(recipe, tmp_path / "run")
    fresh = sd_recipe("imagenet-sd-scratch", small_sd, coupling="knn:k=4", data=config)
    other = trainer_of(fresh, tmp_path / "other")
    rows = torch.arange(8)
    cached = trainer.task.codec.encode(trainer.task.dataset.batch(rows))
    encoded = other.task.codec.encode(other.task.dataset.batch(rows))
    torch.testing.assert_close(cached.data, encoded.data, atol=1e-2, rtol=1e-2)
    assert torch.equal(cached.cond["text"], encoded.cond["text"])
    run = load_run(tmp_path / "run", "cpu").with_sampler(SamplerConfig("ddim", 2))
    assert run.task.reference_images().shape == (3, 8, 8)
    [(images, _)] = run.pipeline()(run.model, 3, seed=0)
    assert images.shape == (3, 3, 8, 8)


def test_adapters_from_a_folder_of_pictures_of_many_shapes(small_sdxl, tmp_path):
    """Batch 1, a caption beside each picture, aspect-ratio buckets, SDXL's sizes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(40, 16), (16, 40), (20, 20), (18, 20), (21, 19)]):
        image.new("RGB", size, (50 * number, 90, 30)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a sks thing number {number}")
    recipe = sd_recipe(
        "sdxl-lora",
        small_sdxl,
        coupling="knn:k=2",
        data=DataConfig("folder", path=str(folder), size=16, channels=3),
        buckets=Buckets(size=16, step=4, time_ids=True),
        batch_size=1,
        steps=6,
        preview_every=6,
        preview_prompts=("a sks thing",),
    )
    trainer = train(recipe, tmp_path / "run")
    seen = first_pairs(trainer, 10)
    assert len({tuple(data.shape) for data, _, _ in seen}) > 1
    assert all(data.shape == noise.shape for data, noise, _ in seen)
    for data, _, cond in seen:
        height, width = data.shape[2:]
        assert cond["time_ids"][0, 4:].tolist() == [2 * height, 2 * width]
    assert (tmp_path / "run" / "samples" / "step_000006.png").exists()
    train(recipe, tmp_path / "parts", until=3)
    train(recipe, tmp_path / "parts")
    assert_same_weights(tmp_path / "run", tmp_path / "parts")


# -- samples --------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_batches_and_follow_prompts(small_sd, tmp_path):
    prompts = ("a cat", "a dog")
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, preview_prompts=prompts, preview_every=2)
    train(recipe, tmp_path)
    run = load_run(tmp_path, "cpu").with_sampler(SamplerConfig("ddim", 3, guidance=2.0))
    pipeline = run.pipeline(prompts=prompts)
    whole = pipeline.sample(run.model, range(6), seed=0).data
    parts = [pipeline.sample(run.model, [row], seed=0).data for row in (5, 0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole[[5, 0, 3]], atol=1e-5, rtol=1e-4)
    task = run.task
    assert task._texts(range(4), prompts) == ["a cat", "a dog", "a cat", "a dog"]
    assert task._texts(range(12), ())[:11] == [*"0123456789", "0"]
    assert torch.equal(task.conditions(range(3))["label"], torch.arange(3))
    assert (tmp_path / "samples" / "step_000004.png").exists()


def test_guidance_pushes_away_from_the_empty_prompt(small_sd, tmp_path):
    task = trainer_of(sd_recipe("imagenet-sd-scratch", small_sd), tmp_path).task
    cond = task.conditions(range(3))
    none = task.unconditional(cond)
    torch.testing.assert_close(none["text"], task.codec.empty_prompt["text"].expand(3, -1, -1))
    assert not torch.equal(none["text"], cond["text"])


def test_inpainting_samples_depend_on_their_index_alone(small_sd, tmp_path):
    task = trainer_of(sd_recipe("sd-outpaint", small_sd), tmp_path).task
    one, other = task.conditions(range(5)), task.conditions([4, 2])
    assert torch.equal(one["inpaint_mask"][[4, 2]], other["inpaint_mask"])
    torch.testing.assert_close(one["masked_latents"][[4, 2]], other["masked_latents"])


# -- bad input ------------------------------------------------------------------------------------


def test_weights_go_on_with_the_path_they_were_trained_on(small_sd, tmp_path):
    path = VPPath("scaled_linear", "v", beta_start=0.00085, beta_end=0.012)
    recipe = sd_recipe("imagenet-sd-finetune", small_sd, path=path)
    with pytest.raises(ValueError, match=r"prediction_type epsilon \(path: v_prediction\)"):
        trainer_of(recipe, tmp_path)
    scratch = sd_recipe("imagenet-sd-scratch", small_sd, path=path)
    train(scratch, tmp_path / "scratch")
    with silence_hf_logging():
        from diffusers import StableDiffusionPipeline

        made = StableDiffusionPipeline.from_pretrained(tmp_path / "scratch")
    assert made.scheduler.config.prediction_type == "v_prediction"
    further = dataclasses.replace(recipe.model, pretrained=str(tmp_path / "scratch"))
    codec = dataclasses.replace(recipe.task.codec, pretrained=str(tmp_path / "scratch"))
    recipe = dataclasses.replace(recipe, model=further, task=recipe.task.replace(codec=codec))
    tuned = trainer_of(recipe, tmp_path / "tuned")
    start = load_file(tmp_path / "scratch" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(tuned.run.model.unet.conv_in.weight, start["conv_in.weight"])


def test_recipes_that_do_not_fit_together_are_refused(small_sd):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd)
    with pytest.raises(ValueError, match="needs a StableDiffusionUNet"):
        dataclasses.replace(recipe, model=recipe_from_name("digits-flow").model)
    with pytest.raises(ValueError, match=r"model\.inpainting=True"):
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, inpainting=True))
    with pytest.raises(ValueError, match="is conditional"):
        dataclasses.replace(recipe, conditional=False)


def test_unlabeled_pictures_without_captions_say_what_is_missing(small_sd, tmp_path):
    recipe = sd_recipe("imagenet-sd-scratch", small_sd, data=DataConfig("digits", labels=False, size=8))
    with pytest.raises(ValueError, match="neither captions nor labels"):
        trainer_of(recipe, tmp_path)


def test_moments_of_inpainting_need_no_labels(small_sd, tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        image.new("RGB", (16, 16), (60 * number, 90, 30)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"thing number {number}")
    data = DataConfig("folder", path=str(folder), size=16, channels=3)
    recipe = sd_recipe("sd-inpaint", small_sd, coupling="knn:k=2,center=mean", data=data, batch_size=2)
    trainer = trainer_of(recipe, tmp_path / "run")
    assert trainer.coupling.center.mean.shape == trainer.task.codec.shape(trainer.task.dataset.shape)


def test_8_bit_adam_says_what_to_install(small_sd, tmp_path):
    recipe = sd_recipe("sd-lora", small_sd)
    optim = dataclasses.replace(recipe.optim, use_8bit_adam=True)
    recipe = dataclasses.replace(recipe, optim=optim)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        trainer_of(recipe, tmp_path)


def test_lora_is_of_the_rank_asked_for(small_sd, tmp_path):
    recipe = sd_recipe("sd-lora", small_sd)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lora=LoRA(3, 6)))
    train(recipe, tmp_path, until=1)
    assert {3} == {value.shape[0] for name, value in weights(tmp_path).items() if "_A" in name}
