"""One step of any trainer, looked into: is one noise in mixture and target, and is it paired with its own data?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeGuard
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from immiscible_diffusion.couplings.base import Coupling
from immiscible_diffusion.integrations.alignment import pull

DRAWS = {"randn", "randn_like", "normal", "normal_"}
LOSSES = {"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"}
DIFFERENCES = {"sub", "__sub__", "rsub", "__rsub__", "subtract"}
FEWEST = 16  # numbers a sample; of fewer too little is left beside data and constant


@dataclass
class StepReport:
    """What ``check_step`` saw, and in ``problems`` what is wrong; ``print`` it."""

    correlation: float | None = None  # of the noise in the mixture and in the target; None: the target has none
    in_place: float | None = None  # share of the samples that are mixed with the noise paired with them
    data_cosine: float | None = None  # between the data that were paired and those in the mixture
    pull: float | None = None  # of the mixture's noise towards the mixture's data; see ``pull``
    expected_pull: float | None = None  # of the coupling's noise towards the data that it was given
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        values = {name.replace("_", " "): value for name, value in vars(self).items() if isinstance(value, float)}
        figures = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        return "\n".join([figures or "nothing measured", *(self.problems or ["no problem found"])])


@contextmanager
def check_step(
    *, data: Tensor | None = None, noise: Tensor | None = None, paired: bool = True
) -> Iterator[StepReport]:
    """Watch one step of a trainer and report what it mixed.

    ``with check_step() as report: step()``, then ``print(report)``. Watched are couplings, torch's draws of noise,
    inputs of modules, and losses (``mse_loss`` and its relatives, or the difference of prediction and target). A
    module's input that is, sample by sample, a sum of data, a constant and a noise is the mixture; its noise is
    compared with what the target has beside data and constant. A mixture that no module gets in the order of the data
    (packed into tokens) is not found. Of several micro-batches the last counts.

    Couplings start from fresh noise here, whatever ``pair`` is given: else unpaired noise, equal to the paired across
    the sample, could pass for it. So run the step beside training, not in it. Compiled functions run eagerly.

    Args:
        data: ``[B, *shape]``, up to scale and shift, for a trainer that pairs without a coupling of this library.
        noise: ``[B, *shape]`` that was paired with ``data`` before the step, as in loader workers.
        paired: what is right: True in training, False in validation.

    Raises:
        ValueError: data of less than 16 numbers a sample, which cannot be told from noise.
    """
    watch, report = _Watch(data, noise), StepReport()
    eager = getattr(torch.compiler, "set_stance", nullcontext)  # torch >= 2.6
    hook = register_module_forward_pre_hook(lambda module, inputs: watch.see_inputs(inputs))
    call = patch.object(Coupling, "__call__", watch.around(Coupling.__call__))
    pair = patch.object(Coupling, "pair", watch.around(Coupling.pair))
    try:
        with call, pair, eager("force_eager"), watch:
            yield report
    finally:
        hook.remove()
    watch.conclude(report, paired)


class _Watch(TorchFunctionMode):
    """Keeps what a step mixes, and compares it."""

    def __init__(self, data: Tensor | None, noise: Tensor | None) -> None:
        super().__init__()
        self.coupling: Callable[[Tensor], Tensor] | None = None  # the last, with its conditions and mask
        self.mask: Tensor | None = None
        self.depth = 0  # of couplings within couplings
        self.draws: list[Tensor] = []
        self.start(data, noise)

    def start(self, data: Tensor | None, noise: Tensor | None) -> None:
        """A batch and the noise that is paired with it."""
        self.data, self.noise, self.mixture = data, noise, torch.empty(0)
        self.targets: dict[bool, Tensor] = {}  # the last of a loss (True), the last of a difference (False)
        if data is not None:
            if data[0].numel() < FEWEST:
                raise ValueError(f"check_step needs {FEWEST} numbers a sample or more, got {tuple(data.shape)}")
            self.direction = torch.nn.functional.normalize(_center(data), dim=1)

    def around(self, method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``method`` of a coupling, watched; what it starts from is drawn anew."""

        def see(coupling: Coupling, data: Tensor, *noise: Any, **options: Any) -> Tensor:
            self.depth += 1
            try:
                if self.depth == 1:
                    noise = tuple(torch.randn_like(n) if isinstance(n, Tensor) else n for n in noise)
                result = method(coupling, data, *noise, **options)
            finally:
                self.depth -= 1
            if self.depth == 0:
                again, options = coupling.within_process(), {**options, "generator": None}
                self.coupling, self.mask = (lambda data: again(data, **options)), options.get("mask")
                self.start(data.detach().clone(), result.detach().clone())
            return result

        return see

    @torch.no_grad()
    def see_inputs(self, inputs: tuple[Any, ...]) -> None:
        """Keep the first that is a mixture."""
        for value in [] if len(self.mixture) else filter(self.fits, inputs):
            found, noise, weight = self.search(value)
            content = (_rows(value) - weight * noise).norm(dim=1) / _rows(value).norm(dim=1)
            if found.median() > 0.7 and content.median() > 0.01:  # not noise alone
                self.mixture = value.detach().clone()
                return

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = function(*args, **(kwargs or {})), getattr(function, "__name__", "")
        if self.depth == 0 and name in DRAWS and isinstance(result, Tensor):
            self.draws.append(result.detach().clone())
        elif name in LOSSES | DIFFERENCES and len(self.mixture):
            both = [*filter(self.fits, (*args, *(kwargs or {}).values()))]
            constant = [value for value in both if not value.requires_grad]
            if len(both) == 2 and len(constant) == 1:
                self.targets[name in LOSSES] = constant[0].detach().clone()
        return result

    def fits(self, value: Any) -> TypeGuard[Tensor]:
        """Whether this is a tensor of as many samples and numbers as the data."""
        data, shaped = self.data, isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 1
        return data is not None and shaped and value.numel() == data.numel() and len(value) == len(data)

    def residual(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """``value`` less its projection on the data and a constant, ``[B, D]``, and the share that is, ``[B]``."""
        rows = _center(value)
        rest = rows - (rows * self.direction).sum(dim=1, keepdim=True) * self.direction
        return rest, rest.norm(dim=1) / rows.norm(dim=1).clamp_min(1e-30)

    def search(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noise of each sample in ``value``: its correlation there beside the data ``[B]``, itself, its weight.

        One of the paired noises, the sample's own first, or of all that was drawn.
        """
        (rest, share), noises = self.residual(value), [n for n in (self.noise, *self.draws) if self.fits(n)]
        if not noises:
            return torch.zeros(len(value)), _rows(value), torch.zeros(len(value), 1)
        noise = torch.cat([_rows(n) for n in noises])
        rows = _center(noise)
        length = (rows.square().sum(dim=1) - (self.direction @ rows.T).square()).clamp_min(1e-30).sqrt()
        correlation = (rest @ rows.T).abs() / (length * rest.norm(dim=1, keepdim=True).clamp_min(1e-30))
        if self.noise is not None:  # the sample's own, where other noise came on top
            own = correlation[:, : len(value)].diagonal()
            own.masked_fill_(own > 0.5, 1)
        best, index = correlation.max(dim=1)
        beside, _ = self.residual(noise[index])
        weight = (rest * beside).sum(dim=1, keepdim=True) / beside.square().sum(dim=1, keepdim=True)
        return best.where(share > 0.02, 0.0), noise[index], weight

    @torch.no_grad()
    def conclude(self, report: StepReport, paired: bool) -> None:
        """Fill ``report``."""
        data, problem = self.data, report.problems.append
        if data is None or not len(self.mixture):
            if paired and data is None:
                problem("no coupling was called; for pairing of the trainer's own give data=")
            elif paired:
                problem("no module got a mixture of these data and of noise drawn in the step (other data? tokens?)")
            return
        rows, (found, noise, weight) = _rows(self.mixture), self.search(self.mixture)
        content = rows - weight * noise  # the data in the mixture, up to scale
        keep = (found > 0.7) & (content.norm(dim=1) > 0.1 * rows.norm(dim=1))
        if not keep.any():
            problem("the mixtures are all but noise, or all but data: take a step of more samples")
            return
        report.pull = float(pull(content.view_as(data), noise.view_as(data), mask=self.mask)[keep].mean())
        if self.coupling is not None:
            pulls = [pull(data, self.coupling(data), mask=self.mask).mean() for _ in range(16)]
            report.expected_pull = float(torch.stack(pulls).mean())
        if self.noise is not None:
            report.in_place = float((noise == _rows(self.noise))[keep].all(dim=1).float().mean())
            affine = content - self.residual(content)[0]  # as far as data and a constant make it up
            share = affine.norm(dim=1) / content.norm(dim=1)
            cosine = torch.minimum(torch.cosine_similarity(affine, _rows(data)), share)[keep]
            level = (weight.squeeze(1).abs() / rows.norm(dim=1))[keep]
            cleanest = level.argsort()[: max(1, len(level) // 4)]  # there noise added later weighs least
            report.data_cosine = float(cosine[cleanest].median())
        leans = report.pull > 4 / float(keep.sum()) ** 0.5
        if not paired:
            if leans or (report.in_place == 1 and (report.expected_pull or 0) > 1 / len(data) ** 0.5):
                problem("the noise is paired; losses of validation compare with others only where it is not")
            return
        if report.in_place is not None and report.in_place < 0.99:
            problem("the mixture has another noise than the one that was paired with the sample")
        elif report.data_cosine is not None and report.data_cosine < 0.9:
            problem("the data in the mixture are not those that were paired: shifted, or changed in between")
        elif self.noise is None and not leans:
            problem("the noise in the mixture is not paired with its sample")
        target = self.targets.get(True, self.targets.get(False))
        if target is None:
            problem("no loss with a target like the data was seen")
            return
        (mixed, _), (wanted, share) = self.residual(self.mixture), self.residual(target)
        if share.median() > 0.02:  # else the target is the data
            report.correlation = float(torch.cosine_similarity(mixed, wanted).abs().median())
            if report.correlation < 0.9:
                problem("the noise in the target is not the noise in the mixture")


def _rows(value: Tensor) -> Tensor:
    return value.detach().flatten(1).float()


def _center(value: Tensor) -> Tensor:
    rows = _rows(value)
    return rows - rows.mean(dim=1, keepdim=True)
