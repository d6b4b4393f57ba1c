"""A frozen VAE and text encoder between pictures and what is diffused."""

import dataclasses

import pytest
import torch
from immiscible_diffusion.training.pixels import Pixels

from fixtures.stable_diffusion import make_parts
from immiscible_diffusion.applications.stable_diffusion.config import StableDiffusionCodec
from immiscible_diffusion.applications.stable_diffusion.inpainting import Inpainting
from immiscible_diffusion.applications.stable_diffusion.silence import quiet
from immiscible_diffusion.utils.batch import Batch


@pytest.fixture(scope="module")
def codec(small_sd):
    return StableDiffusionCodec(str(small_sd), batch_size=3).load()


@pytest.fixture
def pictures():
    return torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pixels_are_passed_on_untouched(pictures):
    batch = Batch(pictures, {"label": torch.arange(7)})
    assert Pixels().encode(batch, seeded()) is batch
    assert Pixels().decode(pictures) is pictures
    assert Pixels().shape((3, 8, 8)) == (3, 8, 8)


def test_latents_are_those_of_diffusers_training_script(codec, small_sd, pictures):
    with quiet():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(small_sd, subfolder="vae").eval()
    with torch.no_grad():
        law = vae.encode(pictures).latent_dist
        drawn = law.sample(seeded(5)) * vae.config.scaling_factor
    got = codec.encode(Batch(pictures), seeded(5)).data
    torch.testing.assert_close(got, drawn, atol=1e-6, rtol=1e-5)
    mean = codec.encode(Batch(pictures)).data
    torch.testing.assert_close(mean, law.mean * vae.config.scaling_factor, atol=1e-6, rtol=1e-5)
    assert got.shape[1:] == codec.shape((3, 8, 8)) == (4, 4, 4)


def test_latents_do_not_depend_on_how_many_go_through_at_once(codec, pictures):
    for size in (1, 2, 7, 100):
        other = dataclasses.replace(codec, batch_size=size)
        got = other.encode(Batch(pictures), seeded(1)).data
        want = codec.encode(Batch(pictures), seeded(1)).data
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_decoding_undoes_scaling_and_shift(codec, pictures):
    latents = codec.encode(Batch(pictures)).data
    with torch.no_grad():
        want = codec.vae.decode(latents / codec.vae.config.scaling_factor).sample
    torch.testing.assert_close(codec.decode(latents), want, atol=1e-5, rtol=1e-5)


def test_shift_factor_is_taken_off(pictures):
    from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec

    vae = make_parts()["vae"].eval()
    codec = LatentCodec(vae=vae, texts=())
    plain = codec.encode(Batch(pictures)).data
    decoded = codec.decode(plain)
    vae.register_to_config(shift_factor=0.3)
    shifted = codec.encode(Batch(pictures)).data
    torch.testing.assert_close(shifted, plain - 0.3 * vae.config.scaling_factor)
    torch.testing.assert_close(codec.decode(shifted), decoded)


def test_text_is_what_the_pipeline_would_attend_to(codec, small_sd, pictures):
    with quiet():
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(small_sd)
    texts = ["a cat", "", "a dog with a very long tail indeed"]
    want, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
    torch.testing.assert_close(codec.tell(texts)["text"], want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(codec.empty["text"], want[1:2], atol=1e-6, rtol=1e-5)
    batch = Batch(pictures[:3], {**codec.tokenize(texts), "label": torch.arange(3)})
    cond = codec.encode(batch, seeded()).cond
    assert set(cond) == {"text", "label"}, "tokens have become text"
    torch.testing.assert_close(cond["text"], want, atol=1e-6, rtol=1e-5)


def test_text_of_sdxl_is_what_its_pipeline_would_attend_to(small_sdxl):
    with quiet():
        from diffusers import StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline.from_pretrained(small_sdxl)
    codec = StableDiffusionCodec(str(small_sdxl)).load()
    texts = ["a cat", "a dog"]
    text, _, pooled, _ = pipeline.encode_prompt(
        texts, device="cpu", do_classifier_free_guidance=False
    )
    cond = codec.tell(texts, (16, 24))
    torch.testing.assert_close(cond["text"], text, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(cond["pooled"], pooled, atol=1e-6, rtol=1e-5)
    assert cond["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]] * 2
    assert codec.width == 24
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
    text = codec.tell(["a", "b", "a", "a", "b"])["text"]
    assert seen == [2]
    assert torch.equal(text[0], text[2])
    assert torch.equal(text[1], text[4])
    assert not torch.equal(text[0], text[1])


def test_nothing_of_the_codec_is_trained(codec, pictures):
    batch = codec.encode(Batch(pictures.requires_grad_(), codec.tokenize(["x"] * 7)), seeded())
    assert not batch.data.requires_grad
    assert not batch.cond["text"].requires_grad
    parts = [codec.vae, codec.texts[0].encoder]
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_frozen_parts_are_in_half_under_mixed_precision(small_sd, pictures, precision, dtype):
    codec = StableDiffusionCodec(str(small_sd)).load("cpu", precision)
    assert {w.dtype for w in (*codec.vae.parameters(), *codec.texts[0].encoder.parameters())} == {
        dtype
    }
    exact = StableDiffusionCodec(str(small_sd)).load().encode(Batch(pictures)).data
    got = codec.encode(Batch(pictures)).data
    assert got.dtype == torch.float32
    assert (got - exact).std() < 0.05 * exact.std()
    assert codec.decode(got).dtype == torch.float32


def test_latents_that_are_there_already_pass(codec, small_sd):
    cached = codec.of_latents()
    latents = torch.randn(2, 4, 4, 4)
    batch = cached.encode(Batch(latents, codec.tokenize(["a", "b"])), seeded())
    assert torch.equal(batch.data, latents)
    assert batch.cond["text"].shape == (2, 12, 8)
    assert cached.shape((4, 4, 4)) == (4, 4, 4)
    painting = StableDiffusionCodec(str(small_sd), painting=Inpainting()).load()
    with pytest.raises(ValueError, match="latents already; train from the pictures"):
        painting.of_latents()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 8), (3, 8)])
def test_pictures_that_the_vae_cannot_take_are_refused(codec, shape):
    with pytest.raises(ValueError, match=r"3 channels with sides that are multiples of 2.*data\.s"):
        codec.shape(shape)


def test_a_pipeline_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="tiny_stable_diffusion"):
        StableDiffusionCodec().load()
    with pytest.raises(ValueError, match=r"hf download someone/something"):
        StableDiffusionCodec("someone/something").load()
    with pytest.raises(ValueError, match=r"no pipeline at .*nothing"):
        StableDiffusionCodec(str(tmp_path / "nothing")).load()


# -- painting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", ["inside", "outside"])
def test_holes_are_keyed_and_within_their_bounds(hidden):
    painting = Inpainting(hidden)
    holes = painting.holes(500, (16, 12), seeded())
    assert torch.equal(holes, painting.holes(500, (16, 12), seeded()))
    assert not torch.equal(holes, painting.holes(500, (16, 12), seeded(1)))
    assert set(holes.unique().tolist()) == {0.0, 1.0}
    box = holes if hidden == "inside" else 1 - holes
    rows, columns = box[:, 0].amax(2), box[:, 0].amax(1)
    assert torch.equal(rows[:, :, None] * columns[:, None, :], box[:, 0]), "rectangles"
    heights = rows.sum(1)
    inner = heights[heights < 16]
    assert (inner.min(), inner.max()) == (4, 12)
    touching = (columns.sum(1) == 12) | (rows.sum(1) == 16)
    share = touching.float().mean()
    assert share == 0 if hidden == "inside" else 0.4 < share < 0.6, "half planes"


def test_a_hole_hides_the_picture_and_not_the_target(small_sd, pictures):
    codec = StableDiffusionCodec(str(small_sd), painting=Inpainting(pair_masked_region=True)).load()
    batch = codec.encode(Batch(pictures), seeded(3))
    plain = StableDiffusionCodec(str(small_sd)).load().encode(Batch(pictures), seeded(3))
    assert torch.equal(batch.data, plain.data), "the target is the whole picture"
    hole, masked = batch.cond["hole"], batch.cond["masked"]
    assert hole.shape == (7, 1, 4, 4)
    assert masked.shape == batch.data.shape
    assert batch.mask is None, "all of the target counts"
    large = hole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = pictures.where(large == 0, torch.rand_like(pictures))
    again = codec.hidden(other, hole, None)["masked"]
    assert torch.equal(again, codec.hidden(pictures, hole, None)["masked"])


def test_a_hole_of_the_wrong_size_is_refused(codec, pictures):
    with pytest.raises(ValueError, match=r"the hole must be \(7, 1, 4, 4\)"):
        codec.hidden(pictures, torch.zeros(7, 1, 8, 8))
    with pytest.raises(ValueError, match=r"painting\.hidden must be one of inside, outside"):
        Inpainting("around")
    with pytest.raises(ValueError, match=r"painting\.smallest"):
        Inpainting(smallest=0.9)
