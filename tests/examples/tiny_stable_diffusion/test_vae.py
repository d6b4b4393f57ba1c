import dataclasses
import signal

import pytest
import torch

from examples.tiny_stable_diffusion.build import load_splits
from examples.tiny_stable_diffusion.vae import lr_factor, make_vae, vae_training
from fixtures.tiny_stable_diffusion import tiny_config
from immiscible_diffusion.utils.signals import Interrupted


def training(images, state=None, **changes):
    config = tiny_config(images)
    vae_config = dataclasses.replace(config.vae, **changes)
    splits = load_splits(config)
    vae = make_vae(vae_config, splits.data.shape, config.seed)
    options = {"state": state, "save_every": 2, "measure": lambda vae: 1.0}
    return vae_training(vae, splits.data.images, splits.rows, vae_config, config.seed, **options)


def weights(training):
    return torch.cat([weight.flatten() for weight in training.module.state_dict().values()])


def test_training_lowers_the_loss(images):
    losses = []
    training(images, steps=30).run(lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("at", [1, 2, 5])
def test_interrupted_and_resumed_equals_uninterrupted(images, tmp_path, at):
    whole = training(images)
    whole.run()

    def stop(step, loss):
        if step == at:
            signal.raise_signal(signal.SIGTERM)

    first = training(images, tmp_path / "state.pt")
    with pytest.raises(Interrupted, match=f"step {at}"):
        first.run(stop)
    steps = []
    second = training(images, tmp_path / "state.pt")
    second.run(lambda step, loss: steps.append(step))
    assert steps == list(range(at + 1, 7))
    assert torch.equal(weights(second), weights(whole))
    assert second.curve == whole.curve
    assert second.seconds > first.seconds


def test_a_damaged_state_is_named(images, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        training(images, tmp_path / "state.pt").run()


def test_lr_warms_up_and_ends_near_0():
    factors = [lr_factor(step, 400) for step in range(400)]
    assert factors[0] == pytest.approx(1 / 50)
    assert max(factors) < 1
    assert factors[-1] < 1e-4
    assert factors[50:] == sorted(factors[50:], reverse=True)
