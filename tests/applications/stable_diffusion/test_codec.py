"""The codec of Stable Diffusion: VAE, text encoders and in-painting masks."""

import dataclasses

import pytest
import torch

from fixtures.stable_diffusion import make_parts
from immiscible_diffusion.applications.stable_diffusion.config import StableDiffusionCodec
from immiscible_diffusion.applications.stable_diffusion.inpainting import Inpainting
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import PretrainedPipeline, silence_hf_logging
from immiscible_diffusion.utils.batch import Batch


@pytest.fixture(scope="module")
def codec(small_sd):
    return StableDiffusionCodec(str(small_sd), batch_size=3).load()


@pytest.fixture
def images():
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_latents_are_those_of_diffusers_training_script(codec, small_sd, images):
    with silence_hf_logging():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(small_sd, subfolder="vae").eval()
    with torch.no_grad():
        law = vae.encode(images).latent_dist
        drawn = law.sample(seeded(5)) * vae.config.scaling_factor
    latents = codec.encode(Batch(images), seeded(5)).data
    torch.testing.assert_close(latents, drawn, atol=1e-6, rtol=1e-5)
    mean = codec.encode(Batch(images)).data
    torch.testing.assert_close(mean, law.mean * vae.config.scaling_factor, atol=1e-6, rtol=1e-5)
    assert latents.shape[1:] == codec.shape((3, 8, 8)) == (4, 4, 4)


def test_latents_do_not_depend_on_how_many_go_through_at_once(codec, images):
    for size in (1, 2, 7, 100):
        other = dataclasses.replace(codec, max_batch_size=size)
        latents = other.encode(Batch(images), seeded(1)).data
        expected = codec.encode(Batch(images), seeded(1)).data
        torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


def test_decoding_undoes_scaling_and_shift(codec, images):
    latents = codec.encode(Batch(images)).data
    with torch.no_grad():
        expected = codec.vae.decode(latents / codec.vae.config.scaling_factor).sample
    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-5, rtol=1e-5)


def test_shift_factor_is_taken_off(images):
    from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec

    vae = make_parts()["vae"].eval()
    codec = LatentCodec(vae=vae, texts=())
    plain = codec.encode(Batch(images)).data
    decoded = codec.decode(plain)
    vae.register_to_config(shift_factor=0.3)
    shifted = codec.encode(Batch(images)).data
    torch.testing.assert_close(shifted, plain - 0.3 * vae.config.scaling_factor)
    torch.testing.assert_close(codec.decode(shifted), decoded)


def test_text_is_what_the_pipeline_would_attend_to(codec, small_sd, images):
    with silence_hf_logging():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(small_sd)
    texts = ["a cat", "", "a dog with a very long tail indeed"]
    expected, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
    torch.testing.assert_close(codec.encode_prompts(texts)["text"], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(codec.empty_prompt["text"], expected[1:2], atol=1e-6, rtol=1e-5)
    batch = Batch(images[:3], {**codec.tokenize(texts), "label": torch.arange(3)})
    cond = codec.encode(batch, seeded()).cond
    assert set(cond) == {"text", "label"}, "tokens have become text"
    torch.testing.assert_close(cond["text"], expected, atol=1e-6, rtol=1e-5)


def test_text_of_sdxl_is_what_its_pipeline_would_attend_to(small_sdxl):
    with silence_hf_logging():
        from diffusers import StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline.from_pretrained(small_sdxl)
    codec = StableDiffusionCodec(str(small_sdxl)).load()
    texts = ["a cat", "a dog"]
    text, _, pooled, _ = pipeline.encode_prompt(texts, device="cpu", do_classifier_free_guidance=False)
    cond = codec.encode_prompts(texts, (16, 24))
    torch.testing.assert_close(cond["text"], text, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cond["pooled"], pooled, atol=1e-6, rtol=1e-5)
    assert cond["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    assert codec.text_width == 24
    own = {**codec.tokenize(texts), "time_ids": torch.ones(2, 6)}
    kept = codec.encode(Batch(torch.zeros(2, 3, 8, 8), own)).cond["time_ids"]
    assert torch.equal(kept, torch.ones(2, 6)), "the data set's own are kept"


def test_equal_prompts_go_through_the_encoder_once(codec, monkeypatch):
    seen = []
    encoder = codec.texts[0].encoder
    forward = encoder.forward

    def recorded(ids, **more):
        seen.append(len(ids))
        return forward(ids, **more)

    monkeypatch.setattr(encoder, "forward", recorded)
    text = codec.encode_prompts(["a", "b", "a", "a", "b"])["text"]
    assert seen == [2]
    assert torch.equal(text[0], text[2])
    assert torch.equal(text[1], text[4])
    assert not torch.equal(text[0], text[1])


def test_the_codec_is_frozen(codec, images):
    batch = codec.encode(Batch(images.requires_grad_(), codec.tokenize(["x"] * 7)), seeded())
    assert not batch.data.requires_grad
    assert not batch.cond["text"].requires_grad
    parts = [codec.vae, codec.texts[0].encoder]
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_frozen_parts_are_in_half_under_mixed_precision(small_sd, images, precision, dtype):
    codec = StableDiffusionCodec(str(small_sd)).load("cpu", precision)
    assert {w.dtype for w in (*codec.vae.parameters(), *codec.texts[0].encoder.parameters())} == {dtype}
    exact = StableDiffusionCodec(str(small_sd)).load().encode(Batch(images)).data
    latents = codec.encode(Batch(images)).data
    assert latents.dtype == torch.float32
    assert (latents - exact).std() < 0.05 * exact.std()
    assert codec.decode(latents).dtype == torch.float32


def test_latents_pass_through(codec, small_sd):
    cached = dataclasses.replace(codec, passthrough=True)
    latents = torch.randn(2, 4, 4, 4)
    batch = cached.encode(Batch(latents, codec.tokenize(["a", "b"])), seeded())
    assert torch.equal(batch.data, latents)
    assert batch.cond["text"].shape == (2, 12, 8)
    assert cached.shape((4, 4, 4)) == (4, 4, 4)
    with pytest.raises(ValueError, match="latents already; train from the images"):
        StableDiffusionCodec(str(small_sd)).load(passthrough=True, inpainting=Inpainting())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 8), (3, 8)])
def test_images_that_the_vae_cannot_take_are_refused(codec, shape):
    with pytest.raises(ValueError, match=r"3 channels with sides that are multiples of 2.*data\.s"):
        codec.shape(shape)


def test_a_missing_pipeline_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="tiny_stable_diffusion"):
        StableDiffusionCodec().load()
    with pytest.raises(ValueError, match=r"hf download someone/something"):
        StableDiffusionCodec("someone/something").load()
    with pytest.raises(ValueError, match=r"no pipeline at .*nothing"):
        StableDiffusionCodec(str(tmp_path / "nothing")).load()


def test_a_class_that_would_run_what_its_configuration_names_is_refused(small_sd):
    pipeline = PretrainedPipeline.open(str(small_sd))
    named = dataclasses.replace(pipeline, index=pipeline.index | {"text_encoder": ["transformers", "AutoModel"]})
    with pytest.raises(ValueError, match="names AutoModel as its text_encoder"):
        named.load("text_encoder")


# -- in-painting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["inside", "outside"])
def test_masks_are_keyed_and_within_their_bounds(region):
    inpainting = Inpainting(region)
    masks = inpainting.sample_masks(500, (16, 12), seeded())
    assert torch.equal(masks, inpainting.sample_masks(500, (16, 12), seeded()))
    assert not torch.equal(masks, inpainting.sample_masks(500, (16, 12), seeded(1)))
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    box = masks if region == "inside" else 1 - masks
    rows, columns = box[:, 0].amax(2), box[:, 0].amax(1)
    assert torch.equal(rows[:, :, None] * columns[:, None, :], box[:, 0]), "rectangles"
    heights = rows.sum(1)
    inner = heights[heights < 16]
    assert (inner.min(), inner.max()) == (4, 12)
    touching = (columns.sum(1) == 12) | (rows.sum(1) == 16)
    share = touching.float().mean()
    assert share == 0 if region == "inside" else 0.4 < share < 0.6, "half planes"


def test_a_mask_hides_part_of_the_input_and_not_of_the_target(small_sd, images):
    codec = StableDiffusionCodec(str(small_sd)).load(inpainting=Inpainting())
    batch = codec.encode(Batch(images), seeded(3))
    plain = StableDiffusionCodec(str(small_sd)).load().encode(Batch(images), seeded(3))
    assert torch.equal(batch.data, plain.data), "the target is the wmask image"
    mask, masked = batch.cond["inpaint_mask"], batch.cond["masked_latents"]
    assert mask.shape == (7, 1, 4, 4)
    assert masked.shape == batch.data.shape
    assert batch.mask is None, "all of the target counts"
    large = mask.repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = images.where(large == 0, torch.rand_like(images))
    again = codec.mask_images(other, mask, None)["masked_latents"]
    assert torch.equal(again, codec.mask_images(images, mask, None)["masked_latents"])


def test_a_mask_of_the_wrong_size_is_refused(codec, images):
    with pytest.raises(ValueError, match=r"the mask must be \(7, 1, 4, 4\)"):
        codec.mask_images(images, torch.zeros(7, 1, 8, 8))
    with pytest.raises(ValueError, match=r"inpainting\.mask_region must be one of inside, outside"):
        Inpainting("around")
    with pytest.raises(ValueError, match=r"inpainting\.min_size"):
        Inpainting(min_size=0.9)
