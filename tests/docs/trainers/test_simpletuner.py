"""SimpleTuner: ``prepare_batch(batch, state)`` and the evaluation that calls it, as stand-ins."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_diffusion import KNN
from immiscible_diffusion.integrations import pull


class Model:
    """The noise, the mixture and the target of the common model."""

    def __init__(self, page, coupling, **config):
        self.page, self.coupling = page("simpletuner"), coupling
        self.config = SimpleNamespace(**{"offset_noise": 0, "input_perturbation": 0, **config})

    def prepare_batch(self, batch, state):
        batch["latents"] = batch["latent_batch"].float()
        noise = self.page.run("after", batch=batch, coupling=self.coupling).noise
        if self.config.offset_noise:
            noise = noise + self.config.offset_noise * torch.randn(*noise.shape[:2], 1, 1)
        batch["noise"] = noise
        perturbation = self.config.input_perturbation * torch.randn_like(batch["latents"])
        batch["input_noise"] = noise + perturbation
        batch["sigmas"] = torch.rand(len(noise)).view(-1, 1, 1, 1)
        mixed = batch["sigmas"] * batch["input_noise"]
        batch["noisy_latents"] = (1 - batch["sigmas"]) * batch["latents"] + mixed
        return batch

    def target(self, batch):
        return batch["noise"] - batch["latents"]

    def evaluate(self, eval_batch):
        torch.manual_seed(0)
        return self.page.run(
            "evaluation", prepare_batch=lambda batch: self.prepare_batch(batch, state={}), eval_batch=eval_batch
        ).prepared_eval_batch


@pytest.fixture
def batch(latents):
    return {"latent_batch": latents, "prompts": [str(i) for i in range(len(latents))]}


def test_training_is_paired_and_the_target_is_the_mixed_noise(page, batch, latents):
    model, before = Model(page, KNN(k=8)), latents.clone()
    ready = model.prepare_batch(batch, state={"global_step": 1})
    assert pull(before, ready["noise"]).mean() > 0.8
    clean = ready["noisy_latents"] - ready["sigmas"] * model.target(ready)
    torch.testing.assert_close(clean, before, atol=1e-5, rtol=1e-4)
    assert torch.equal(ready["latents"], before)
    assert ready["prompts"] == [str(i) for i in range(len(latents))]


def test_evaluation_is_left_alone(page, batch, latents):
    ready = Model(page, KNN(k=8)).evaluate(batch)
    torch.manual_seed(0)
    assert torch.equal(ready["noise"], torch.randn_like(latents))
    assert "unpaired" not in batch
    assert pull(latents, Model(page, KNN(k=8)).prepare_batch(batch, {})["noise"]).mean() > 0.8


def test_offset_and_perturbation_come_after(page, batch, latents):
    model = Model(page, KNN(k=8), offset_noise=0.1, input_perturbation=0.1)
    ready = model.prepare_batch(batch, {})
    assert pull(latents, ready["noise"]).mean() > 0.8
    assert ready["noise"].mean(dim=(2, 3)).std() > 0.1 / 1.1
    assert not torch.equal(ready["noise"], ready["input_noise"])


def test_k_1_is_the_line_that_was_there(page, batch, latents):
    ready = Model(page, KNN(k=1)).prepare_batch(batch, {})
    torch.manual_seed(0)
    assert torch.equal(ready["noise"], page("simpletuner").run("before", batch={"latents": latents}).noise)


def test_ranks_of_a_context_group_agree(page, latents):
    noises = []
    for _ in range(2):
        torch.manual_seed(11)
        ready = Model(page, KNN(k=4)).prepare_batch({"latent_batch": latents}, {})
        noises.append(ready["noise"])
    assert torch.equal(*noises)


def test_check_prints_the_pull(page, many, capsys):
    page("simpletuner").run("check", batch={"latents": many}, noise=KNN(k=2)(many))
    assert abs(float(capsys.readouterr().out.split()[1]) - 0.46) < 4 * 0.02
