"""Stable Diffusion's recipes through the one training loop, on a pipeline of a few weights."""

import dataclasses
from contextlib import closing

import pytest
import torch
from immiscible_diffusion.evaluation.conditions import Told
from safetensors.torch import load_file

from immiscible_diffusion.applications.stable_diffusion.latent_cache import encode
from immiscible_diffusion.applications.stable_diffusion.silence import quiet
from immiscible_diffusion.applications.stable_diffusion.unet import LoRA
from immiscible_diffusion.cli.sample import main as sample
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.data.folder_of_samples import SampleFolder
from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.integrations import pull
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_json

RECIPES = ["imagenet-sd-scratch", "imagenet-sd-finetune", "sd-inpaint", "sd-outpaint", "coco-sd"]


def small(name, pipeline, **changes):
    """The recipe, shrunk further."""
    recipe = recipe_from_name(name).tiny()
    codec = dataclasses.replace(recipe.codec, pretrained=str(pipeline))
    data = dataclasses.replace(recipe.data, size=8, max_samples=64)
    optim = dataclasses.replace(recipe.optim, lr=1e-3)
    changes = {"steps": 4, "checkpoint_every": 2, "preview_every": 0, **changes}
    changes = {"batch_size": 8, "data": data, "codec": codec, "optim": optim, **changes}
    return dataclasses.replace(recipe, **changes)


def trained(recipe, folder, until=None):
    trainer = Trainer(recipe, RunDir.open(folder, recipe), device="cpu")
    trainer.train(until=until, quiet=True)
    return trainer


def weights(folder):
    return load_file(folder / "weights" / "model.safetensors")


def assert_equal_weights(one, other):
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def first_pairs(trainer, count=3):
    with closing(trainer.pairs()) as pairs:
        return [next(pairs) for _ in range(count)]


# -- what is paired -------------------------------------------------------------------------------


def test_noise_is_paired_with_latents_and_text_follows_its_datum(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, coupling="knn:k=64", batch_size=32)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    assert trainer.codec.shape(trainer.dataset.shape) == (4, 4, 4)
    prompts = trainer.codec.tell(trainer.dataset.class_names)["text"]
    for data, noise, cond in first_pairs(trainer):
        assert data.shape == noise.shape == (32, 4, 4, 4)
        assert pull(data, noise).mean() > 1.2
        torch.testing.assert_close(cond["text"], prompts[cond["label"]])
        assert "tokens" not in cond


def test_data_text_and_start_are_the_same_for_every_coupling(small_sd, tmp_path):
    seen = {}
    for coupling in ("independent", "knn:k=4", "assignment"):
        recipe = small("sd-inpaint", small_sd, coupling=coupling)
        trainer = Trainer(recipe, RunDir.open(tmp_path / coupling[:3], recipe), device="cpu")
        first = list(trainer.bare.state_dict().values())
        seen[coupling] = (first_pairs(trainer), first, trainer.validation)
    reference, start, validation = seen.pop("independent")
    for pairs, first, other in seen.values():
        assert all(torch.equal(a, b) for a, b in zip(first, start, strict=True))
        assert torch.equal(other.data, validation.data)
        for (data, noise, cond), (data_0, noise_0, cond_0) in zip(pairs, reference, strict=True):
            assert torch.equal(data, data_0)
            assert not torch.equal(noise, noise_0)
            assert cond.keys() == cond_0.keys() == {"text", "label", "hole", "masked"}
            assert all(torch.equal(cond[name], cond_0[name]) for name in cond)


@pytest.mark.parametrize("name", ["imagenet-sd-scratch", "sd-inpaint"])
def test_k_of_one_gives_the_weights_of_independent_noise(small_sd, tmp_path, name):
    for folder, coupling in (("plain", "independent"), ("one", "knn:k=1")):
        trained(small(name, small_sd, coupling=coupling, steps=2), tmp_path / folder)
    assert_equal_weights(tmp_path / "plain", tmp_path / "one")


def test_moments_are_of_latents(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, coupling="knn:k=4,center=mean")
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, flip=False))
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    latents = trainer.codec.encode(trainer.dataset.batch(torch.arange(64))).data
    center, mean = trainer.coupling.center.mean, latents.mean(0)
    drawn = 0.9 / 64**0.5  # of the posterior's deviation, which is about 1, in a mean of 64
    assert center.shape == (4, 4, 4)
    assert (center - mean).abs().max() < 5 * drawn


def test_pairing_inside_the_hole_alone(small_sd, tmp_path):
    recipe = small("sd-inpaint", small_sd, coupling="knn:k=64", batch_size=32)
    painting = dataclasses.replace(recipe.codec.painting, pair_masked_region=True)
    codec = dataclasses.replace(recipe.codec, painting=painting)
    recipe = dataclasses.replace(recipe, codec=codec)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    inside, outside = [], []
    for data, noise, cond in first_pairs(trainer, 20):
        hole = cond["hole"].bool()
        inside.append(pull(data, noise, mask=hole).mean())
        outside.append(pull(data, noise, mask=~hole).mean())
    assert torch.stack(inside).mean() > 1
    assert abs(torch.stack(outside).mean()) < 5 / (20 * 32) ** 0.5


def test_dropped_prompts_are_the_empty_one(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, cond_drop_prob=0.4, batch_size=64)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    empty = trainer.codec.empty["text"]
    (_, _, cond), rng = first_pairs(trainer, 1)[0], trainer.feed.streams(0)
    seen = trainer.feed.seen(cond, rng)["text"]
    hidden = (seen == empty).flatten(1).all(1)
    assert 0.2 < hidden.float().mean() < 0.6
    assert torch.equal(seen[~hidden], cond["text"][~hidden])
    assert torch.equal(seen, trainer.feed.seen(cond, trainer.feed.streams(0))["text"])


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_becomes_a_pipeline_of_diffusers(small_sd, tmp_path, name):
    recipe = small(name, small_sd, coupling="knn:k=4")
    trainer = trained(recipe, tmp_path)
    with quiet():
        from diffusers import DiffusionPipeline, UNet2DConditionModel
        from diffusers.training_utils import EMAModel

        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
        average = EMAModel.from_pretrained(tmp_path / "unet_ema", UNet2DConditionModel)
    averaged = trainer.average.current().unet.state_dict()
    for key, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, averaged[key])
    assert average.optimization_step == 4
    for mine, theirs in zip(trainer.average._places, average.shadow_params, strict=True):
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
    recipe = small(name, small_sd)
    trained(recipe, tmp_path / "run")
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
    recipe = small("imagenet-sd-scratch", small_sd)
    trainer = trained(recipe, tmp_path, until=2)
    assert not (tmp_path / "model_index.json").exists()
    state = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(state["conv_in.weight"], trainer.bare.unet.conv_in.weight)
    trained(recipe, tmp_path)
    assert (tmp_path / "model_index.json").exists()
    longer = dataclasses.replace(recipe, steps=6)
    trained(longer, tmp_path, until=5)
    assert not (tmp_path / "model_index.json").exists()


@pytest.mark.parametrize("name", ["imagenet-sd-scratch", "sd-outpaint", "sd-lora"])
def test_resumed_equals_uninterrupted_bit_for_bit(small_sd, tmp_path, name):
    changes = {"coupling": "knn:k=4,center=mean", "cond_drop_prob": 0.2}
    if name == "imagenet-sd-scratch":
        recipe = recipe_from_name(name)
        changes["loss"] = dataclasses.replace(recipe.loss, noise_offset=0.1, input_perturbation=0.1)
    recipe = small(name, small_sd, **changes)
    trained(recipe, tmp_path / "whole")
    trained(recipe, tmp_path / "parts", until=3)
    trained(recipe, tmp_path / "parts")
    assert_equal_weights(tmp_path / "whole", tmp_path / "parts")


def test_only_adapters_are_in_checkpoint_average_and_weights(small_sd, tmp_path):
    trainer = trained(small("sd-lora", small_sd), tmp_path)
    state = RunDir(tmp_path).load_checkpoint()
    assert all("lora_" in name for name in (*state["model"], *weights(tmp_path)))
    assert len(state["average"]["shadow_params"]) == len(state["model"])
    before = load_file(small_sd / "unet" / "diffusion_pytorch_model.safetensors")
    after = trainer.bare.unet.state_dict()
    assert torch.equal(after["conv_in.weight"], before["conv_in.weight"])
    assert any(value.abs().max() > 0 for name, value in weights(tmp_path).items() if "_B" in name)


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps the precision of a process, which these tests change."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("name", ["sd-inpaint", "sd-lora"])
def test_half_precision_of_frozen_parts_trains(small_sd, tmp_path, name):
    trainer = trained(small(name, small_sd, mixed_precision="bf16", preview_every=4), tmp_path)
    assert trainer.codec.place[1] == torch.bfloat16
    assert {w.dtype for w in trainer.bare.parameters() if w.requires_grad} == {torch.float32}
    frozen = {w.dtype for w in trainer.bare.parameters() if not w.requires_grad}
    assert frozen == ({torch.bfloat16} if name == "sd-lora" else set())
    assert (tmp_path / "samples" / "step_000004.png").exists()


def test_a_run_in_half_precision_is_a_whole_pipeline(small_sd, tmp_path, fresh_accelerate):
    """The frozen parts are published as they were, not in half."""
    from diffusers import DiffusionPipeline

    trained(small("imagenet-sd-scratch", small_sd, mixed_precision="bf16"), tmp_path)
    with quiet():
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
    trained(small("imagenet-sd-scratch", small_sd, path=path, sampler=sampler), tmp_path)
    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a", num_inference_steps=2, output_type="pt").images.isfinite().all()
    if isinstance(path, VPPath):
        assert float(pipeline.scheduler.alphas_cumprod[-1]) < 1e-6
        assert pipeline.scheduler.config.timestep_spacing == "trailing"
    else:
        assert pipeline.scheduler.config.prediction_type == "flow_prediction"


def test_scaled_latents_are_undone_by_the_published_vae(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, scaling=DataScaling(2.0), steps=2)
    trained(recipe, tmp_path)
    assert read_json(tmp_path / "vae" / "config.json")["scaling_factor"] == pytest.approx(1.8)
    with pytest.raises(ValueError, match=r"leave scaling\.factor 1"):
        small("sd-lora", small_sd, scaling=DataScaling(2.0))


def test_weights_of_a_run_go_on_with_its_path_whatever_the_codec_says(small_sd, tmp_path):
    v = VPPath("scaled_linear", "v", beta_start=0.00085, beta_end=0.012)
    first = small("imagenet-sd-scratch", small_sd, path=v, steps=2)
    trained(first, tmp_path / "first")
    tune = small("imagenet-sd-finetune", small_sd, steps=2)
    model = dataclasses.replace(tune.model, pretrained=str(tmp_path / "first"))
    trained(dataclasses.replace(tune, model=model, path=v), tmp_path / "tuned")
    with pytest.raises(ValueError, match="prediction_type v_prediction"):
        trained(dataclasses.replace(tune, model=model), tmp_path / "wrong")
    flow = dataclasses.replace(tune, path=FlowMatchingPath(), sampler=SamplerConfig("euler", 2))
    with pytest.raises(ValueError, match="a FlowMatchingPath needs"):
        trained(flow, tmp_path / "flow")


def test_painters_are_told_what_their_picture_shows(small_sd, tmp_path):
    recipe = small("sd-inpaint", small_sd)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    told = Told(recipe, trainer.dataset, "cpu", trainer.codec)
    rows = range(len(trainer.dataset))
    labels = trainer.dataset.batch(torch.arange(len(rows))).cond["label"]
    assert torch.equal(told(rows)["label"], labels)
    assert told.texts(rows) == trainer.dataset.texts(torch.arange(len(rows)))


def test_adapters_alone_cannot_learn_to_see_a_hole(small_sd, tmp_path):
    recipe = small("sd-inpaint", small_sd)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lora=LoRA()))
    with pytest.raises(ValueError, match="would not see the hole"):
        trained(recipe, tmp_path)


def test_training_lowers_the_loss(small_sd, tmp_path):
    recipe = small(
        "imagenet-sd-scratch", small_sd, steps=120, validate_every=5, checkpoint_every=120
    )
    run = trained(recipe, tmp_path).run
    losses = [record["loss"] for record in run.records("validation")]
    assert losses[-1] < 0.9 * losses[0]


def test_sdxl_trains_with_adapters(small_sdxl, tmp_path):
    recipe = small("sdxl-lora", small_sdxl, coupling="knn:k=2")
    trainer = trained(recipe, tmp_path)
    (_, _, cond) = first_pairs(trainer, 1)[0]
    assert cond["pooled"].shape == (8, 6)
    assert cond["time_ids"][0].tolist() == [8, 8, 0, 0, 8, 8]


def test_latents_from_a_folder_are_those_of_the_vae(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, coupling="knn:k=4")
    config = dataclasses.replace(recipe.data, flip=False)
    with quiet():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(small_sd, subfolder="vae").eval()
    encode(load_images(config), vae, tmp_path / "latents")
    recipe = dataclasses.replace(recipe, latents=str(tmp_path / "latents"))
    trainer = trained(recipe, tmp_path / "run")
    fresh = small("imagenet-sd-scratch", small_sd, coupling="knn:k=4", data=config)
    other = Trainer(fresh, RunDir.open(tmp_path / "other", fresh), device="cpu")
    rows = torch.arange(8)
    cached = trainer.codec.encode(trainer.dataset.batch(rows))
    encoded = other.codec.encode(other.dataset.batch(rows))
    torch.testing.assert_close(cached.data, encoded.data, atol=1e-2, rtol=1e-2)
    assert torch.equal(cached.cond["text"], encoded.cond["text"])
    made = LoadedRun.load(RunDir(tmp_path / "run"), "cpu")
    assert made.pictures.shape == (3, 8, 8)
    [(images, _)] = made.generator(SamplerConfig("ddim", 2))(made.model, 3, seed=0)
    assert images.shape == (3, 3, 8, 8)


def test_adapters_from_a_folder_of_pictures_of_many_shapes(small_sdxl, tmp_path):
    """Batch 1, a caption beside each picture, aspect-ratio buckets, SDXL's sizes."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in enumerate([(40, 16), (16, 40), (20, 20), (18, 20), (21, 19)]):
        image.new("RGB", size, (50 * number, 90, 30)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a sks thing number {number}")
    recipe = small(
        "sdxl-lora",
        small_sdxl,
        coupling="knn:k=2",
        data=DataConfig("folder", path=str(folder), size=16, channels=3),
        buckets=Buckets(size=16, step=4, time_ids=True),
        batch_size=1,
        steps=6,
        preview_every=6,
        prompts=("a sks thing",),
    )
    trainer = trained(recipe, tmp_path / "run")
    seen = first_pairs(trainer, 10)
    assert len({tuple(data.shape) for data, _, _ in seen}) > 1
    assert all(data.shape == noise.shape for data, noise, _ in seen)
    for data, _, cond in seen:
        height, width = data.shape[2:]
        assert cond["time_ids"][0, 4:].tolist() == [2 * height, 2 * width]
    assert (tmp_path / "run" / "samples" / "step_000006.png").exists()
    trained(recipe, tmp_path / "parts", until=3)
    trained(recipe, tmp_path / "parts")
    assert_equal_weights(tmp_path / "run", tmp_path / "parts")


# -- samples --------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_batches_and_follow_prompts(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, prompts=("a cat", "a dog"), preview_every=2)
    trained(recipe, tmp_path)
    made = LoadedRun.load(RunDir(tmp_path), "cpu")
    sampler = SamplerConfig("ddim", 3, guidance=2.0)
    generator = made.generator(sampler, prompts=("a cat", "a dog"))
    whole = generator.of_rows(made.model, range(6), seed=0).data
    parts = [generator.of_rows(made.model, [row], seed=0).data for row in (5, 0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole[[5, 0, 3]], atol=1e-5, rtol=1e-4)
    assert generator.told.texts(range(4)) == ["a cat", "a dog", "a cat", "a dog"]
    named = made.generator(sampler).told
    assert named.texts(range(12))[:11] == [*"0123456789", "0"]
    assert torch.equal(named.labels(range(3))["label"], torch.arange(3))
    assert (tmp_path / "samples" / "step_000004.png").exists()


def test_guidance_1_and_more_differ_by_the_empty_prompt(small_sd, tmp_path):
    trained(small("imagenet-sd-scratch", small_sd), tmp_path)
    made = LoadedRun.load(RunDir(tmp_path), "cpu")
    generator = made.generator(SamplerConfig("ddim", 2))
    cond = generator.told(range(3))
    none = generator.told.without(cond)
    torch.testing.assert_close(none["text"], made.codec.empty["text"].expand(3, -1, -1))
    assert not torch.equal(none["text"], cond["text"])


def test_a_painter_is_shown_the_pictures_of_the_data(small_sd, tmp_path):
    trained(small("sd-outpaint", small_sd), tmp_path)
    made = LoadedRun.load(RunDir(tmp_path), "cpu")
    told = made.generator(SamplerConfig("ddim", 2)).told
    one, other = told(range(5)), told([4, 2])
    assert torch.equal(one["hole"][[4, 2]], other["hole"])
    torch.testing.assert_close(one["masked"][[4, 2]], other["masked"])


# -- bad input ------------------------------------------------------------------------------------


def test_weights_go_on_with_the_path_they_were_trained_on(small_sd, tmp_path):
    path = VPPath("scaled_linear", "v", beta_start=0.00085, beta_end=0.012)
    recipe = small("imagenet-sd-finetune", small_sd, path=path)
    with pytest.raises(ValueError, match=r"prediction_type epsilon \(path: v_prediction\)"):
        Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    scratch = small("imagenet-sd-scratch", small_sd, path=path)
    trained(scratch, tmp_path / "scratch")
    with quiet():
        from diffusers import StableDiffusionPipeline

        made = StableDiffusionPipeline.from_pretrained(tmp_path / "scratch")
    assert made.scheduler.config.prediction_type == "v_prediction"
    further = dataclasses.replace(recipe.model, pretrained=str(tmp_path / "scratch"))
    codec = dataclasses.replace(recipe.codec, pretrained=str(tmp_path / "scratch"))
    recipe = dataclasses.replace(recipe, model=further, codec=codec)
    tuned = Trainer(recipe, RunDir.open(tmp_path / "tuned", recipe), device="cpu")
    start = load_file(tmp_path / "scratch" / "unet" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(tuned.bare.unet.conv_in.weight, start["conv_in.weight"])


def test_recipes_that_do_not_fit_together_are_refused(small_sd):
    recipe = small("imagenet-sd-scratch", small_sd)
    pixels = recipe_from_name("digits-flow").codec
    with pytest.raises(ValueError, match="needs StableDiffusionCodec"):
        dataclasses.replace(recipe, codec=pixels)
    with pytest.raises(ValueError, match=r"model\.painting=True"):
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, painting=True))
    with pytest.raises(ValueError, match="is conditional"):
        dataclasses.replace(recipe, conditional=False)


def test_unlabeled_pictures_without_captions_say_what_is_missing(small_sd, tmp_path):
    recipe = small("imagenet-sd-scratch", small_sd, data=DataConfig("digits", labels=False, size=8))
    with pytest.raises(ValueError, match="there are no class names"):
        Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")


def test_8_bit_adam_says_what_to_install(small_sd, tmp_path):
    recipe = small("sd-lora", small_sd)
    recipe = dataclasses.replace(recipe, optim=dataclasses.replace(recipe.optim, eight_bit=True))
    with pytest.raises(ImportError, match=r"pip install 'immiscible-diffusion\[bitsandbytes\]'"):
        Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")


def test_lora_is_of_the_rank_asked_for(small_sd, tmp_path):
    recipe = small("sd-lora", small_sd)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lora=LoRA(3, 6)))
    trained(recipe, tmp_path, until=1)
    assert {3} == {value.shape[0] for name, value in weights(tmp_path).items() if "_A" in name}
