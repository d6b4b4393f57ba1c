"""The training loop of the VAE and of the text encoder."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn
from tqdm import tqdm

from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.signals import Interrupted, InterruptGuard

CURVE_POINTS = 5


@dataclass
class Training:
    """Optimizer steps whose result does not depend on how often they are interrupted."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[int], Tensor]  # of step s, a function of s and the weights alone
    lr: Callable[[int], float]  # of step s
    steps: int
    name: str  # for the progress bar and messages
    max_grad_norm: float | None = None
    state: Path | None = None  # file to resume from
    save_every: int = 100
    measure: Callable[[nn.Module], float] | None = None  # the score that ``curve`` records
    curve: list[list[float]] = field(default_factory=list)  # five points (step, score)
    seconds: float = 0.0  # CPU seconds, interruptions left out

    def run(self, on_step: Callable[[int, float], None] | None = None, quiet: bool = True) -> None:
        """Train from the saved state, or from step 0, to the end.

        Args:
            on_step: is called with the number of steps done and the loss.
            quiet: show no progress bar.

        Raises:
            ValueError: the state file is damaged.
            Interrupted: on a signal, after the state was saved.
        """
        start = self.resume()
        marks = {round(self.steps * (i + 1) / CURVE_POINTS) for i in range(CURVE_POINTS)}
        interval = 0.1 if sys.stderr.isatty() else 30
        self.module.train().requires_grad_(True)
        with (
            InterruptGuard() as guard,
            tqdm(None, self.name, self.steps, initial=start, disable=quiet, mininterval=interval) as bar,
        ):
            for step in range(start, self.steps):
                began = time.process_time()
                loss = self._step(step)
                self.seconds += time.process_time() - began
                bar.set_postfix(loss=loss, refresh=False)
                bar.update()
                if on_step is not None:
                    on_step(step + 1, loss)
                if step + 1 in marks and self.measure is not None:
                    self.curve.append([step + 1, self.measure(self.module.eval())])
                    self.module.train()
                if (step + 1) % self.save_every == 0 or guard.received is not None:
                    self.save(step + 1)
                if guard.received is not None and step + 1 < self.steps:
                    text = f"stopped at step {step + 1} of the {self.name}; the same command resumes"
                    raise Interrupted(guard.received, text)
        self.module.eval().requires_grad_(False)

    def _step(self, step: int) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        loss = self.loss(step)
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return loss.item()

    def save(self, step: int) -> None:
        """Write what is needed to resume after ``step`` steps."""
        if self.state is None:
            return
        weights, optimizer = self.module.state_dict(), self.optimizer.state_dict()
        with atomic_path(self.state) as temporary:
            torch.save([step, weights, optimizer, self.curve, self.seconds], temporary)

    def resume(self) -> int:
        """Restore the saved state; returns the steps it has done, 0 if there is none."""
        if self.state is None or not self.state.is_file():
            return 0
        try:
            step, weights, optimizer, self.curve, self.seconds = torch.load(
                self.state, map_location="cpu", weights_only=True
            )
            self.module.load_state_dict(weights)
            self.optimizer.load_state_dict(optimizer)
        except (OSError, RuntimeError, EOFError, ValueError, TypeError, UnpicklingError) as error:
            raise ValueError(
                f"{self.state} cannot be read ({error}); remove it to train the {self.name} again"
            ) from error
        return int(step)
