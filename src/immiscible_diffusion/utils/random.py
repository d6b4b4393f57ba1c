"""Keyed randomness: every stream is a pure function of (seed, step, rank, name).

No generator state is carried or saved. A coupling that draws more numbers therefore cannot shift the times or the data
order, threads share nothing, and a resumed run draws what the uninterrupted one would have drawn.
"""

import hashlib
from dataclasses import dataclass

import torch


def hash_seed(*parts: int | str) -> int:
    """Hash ``parts`` to a seed in [0, 2^63), the same on any machine."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def keyed_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Make a new generator on ``device``, seeded by the hash of ``parts``."""
    return torch.Generator(device=device).manual_seed(hash_seed(*parts))


@dataclass(frozen=True)
class RandomStreams:
    """The independent random streams of one step on one rank.

    Each property is a *new* generator at the start of its stream: take it once per step.

    Args:
        seed: the run's seed.
        step: the optimizer step or micro-batch (for ``order``: the epoch).
        rank: the process; W ranks draw what one process draws in W chunks with these keys.
        device: where ``noise``, ``time`` and ``augment`` are drawn; ``order`` is on the CPU.
    """

    seed: int
    step: int = 0
    rank: int = 0
    device: torch.device | str = "cpu"

    def _stream(self, name: str) -> torch.Generator:
        return keyed_generator(self.seed, self.step, self.rank, name, device=self.device)

    @property
    def order(self) -> torch.Generator:
        """Order of the data; the same on every rank."""
        return keyed_generator(self.seed, self.step, "order")

    @property
    def augment(self) -> torch.Generator:
        """Random augmentation, such as flips; on the CPU, where data are loaded."""
        return keyed_generator(self.seed, self.step, self.rank, "augment")

    @property
    def noise(self) -> torch.Generator:
        """Noise, and all that a coupling draws."""
        return self._stream("noise")

    @property
    def time(self) -> torch.Generator:
        """Diffusion times."""
        return self._stream("time")

    @property
    def encode(self) -> torch.Generator:
        """What an encoder draws: the latents of a VAE."""
        return self._stream("encode")

    @property
    def labels(self) -> torch.Generator:
        """Which conditions are dropped."""
        return self._stream("labels")

    @property
    def dropout(self) -> int:
        """Seed of the global generators, from which dropout layers draw."""
        return hash_seed(self.seed, self.step, self.rank, "dropout")
