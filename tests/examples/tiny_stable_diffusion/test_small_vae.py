import signal

import pytest
import torch

from fixtures.tiny_stable_diffusion import settings
from immiscible_diffusion.smallsd.pictures import load_pictures
from immiscible_diffusion.smallsd.vae import VAETraining, make_vae, rate
from immiscible_diffusion.utils.signals import Interrupted


def training(pictures, state=None, **changes):
    how = settings(pictures)
    found = load_pictures(how)
    vae = make_vae(how.vae, found.images.shape, how.seed)
    return VAETraining(vae, found.images, found.rows, how.vae, how.seed, state, 2, **changes)


def weights(one):
    return torch.cat([weight.flatten() for weight in one.vae.state_dict().values()])


def test_training_lowers_the_loss(pictures):
    losses = []
    one = training(pictures)
    one.settings = settings(pictures).vae.__class__((8, 8), 2, 1, 4, steps=30, batch_size=8)
    one.run(lambda step, loss: losses.append(loss))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("at", [1, 2, 5])
def test_interrupted_and_resumed_equals_uninterrupted(pictures, tmp_path, at):
    whole = training(pictures, measure=lambda vae: 1.0)
    whole.run(lambda step, loss: None)

    def stop(step, loss):
        if step == at:
            signal.raise_signal(signal.SIGTERM)

    first = training(pictures, tmp_path / "state.pt", measure=lambda vae: 1.0)
    with pytest.raises(Interrupted, match=f"step {at}"):
        first.run(stop)
    second = training(pictures, tmp_path / "state.pt", measure=lambda vae: 1.0)
    started = second.resume()
    assert started == at
    second.run(lambda step, loss: None, started)
    assert torch.equal(weights(second), weights(whole))
    assert second.curve == whole.curve
    assert second.seconds > first.seconds


def test_a_broken_state_is_named(pictures, tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        training(pictures, tmp_path / "state.pt").resume()


def test_the_rate_warms_up_and_ends_near_0():
    shares = [rate(step, 400) for step in range(400)]
    assert shares[0] == pytest.approx(1 / 50)
    assert max(shares) < 1
    assert shares[-1] < 1e-4
    assert shares[50:] == sorted(shares[50:], reverse=True)
