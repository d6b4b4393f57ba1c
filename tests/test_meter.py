import itertools

import pytest
import torch

from immiscible_diffusion.coupling import Independent
from immiscible_diffusion.meter import TIMED_EVERY, Meter


@pytest.mark.parametrize("steps", [1, 2, TIMED_EVERY - 1, TIMED_EVERY, 3 * TIMED_EVERY + 1])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pairing_is_per_step_however_many_steps_were_timed(monkeypatch, device, steps):
    """A clock that ticks once a look: pairing takes 1 s whenever it is timed."""
    ticks = itertools.count()
    monkeypatch.setattr(Meter, "clock", lambda self: float(next(ticks)))
    meter = Meter(torch.device(device), began=0.0)
    for _ in range(steps):
        meter.timed(Independent())(torch.zeros(2, 3))
        meter.steps += 1
    timed = steps if device == "cpu" else -(-steps // TIMED_EVERY)
    record = meter.record()
    assert record["pairing_ms"] == 1000
    assert record["seconds_per_step"] == 2 * timed / steps
    assert record["pairing_share"] == pytest.approx(1 / record["seconds_per_step"])
    assert (meter.steps, meter.pairing, meter.timed_steps) == (0, 0.0, 0)
