"""Old names of commands and options, so that an old command line says what is meant by now."""

from collections.abc import Sequence

COMMANDS = {
    "analyse": "immiscible analyze",
    "bulk": "immiscible sample RUN --to DIR (or --pipeline NAME --to DIR)",
    "explain": "immiscible describe",
    "fetch": "immiscible download",
    "make-small-sd": "python -m examples.tiny_stable_diffusion",
    "probe": "immiscible pilot",
    "toy": "python -m examples.toy_2d",
}

OPTIONS = {
    "cell": "trial",
    "accumulation": "gradient_accumulation_steps",
    "precision": "mixed_precision",
    "label_dropout": "cond_drop_prob",
    "prompts": "preview_prompts",
    "optimiser.clip": "optim.max_grad_norm",
    "optimiser.decay": "optim.lr_schedule",
    "optimiser.warmup": "optim.warmup_steps",
    "optimiser.eight_bit": "optim.use_8bit_adam",
    "optimiser.ema": "ema.decay",
    "optimiser.ema_ramp": "ema.warmup",
    "optimiser.ema_power": "ema.power",
    "budget": "sampling-steps",
    "steps": "sampling-steps",
    "evaluation.budgets": "eval.sampling_steps",
    "evaluation.at": "eval.steps",
    "evaluation.points": "eval.num",
    "evaluation.first": "eval.start",
    "evaluation.rollouts": "eval.rollout_every",
    "data.limit": "data.max_samples (of demonstrations: data.max_train_episodes)",
    "data.observation": "data.obs_type",
    "data.validation": "data.val_ratio",
    "data.buffer": "data.shuffle_buffer",
    "data.skip_damaged": "data.on_error skip",
    "data.execute": "data.n_action_steps",
    "data.observations": "data.n_obs_steps",
    "data.learn_copies": "data.do_mask_loss_for_padding (its opposite)",
    "loss.widen": "loss.k",
    "loss.denoise": "loss.pretrain_fraction",
    "loss.base": "loss.q",
    "loss.stages": "loss.num_stages",
    "codec.painting.hidden": "inpainting.mask_region",
    "codec.painting.smallest": "inpainting.min_size",
    "codec.painting.largest": "inpainting.max_size",
    "codec.painting.pair_inside": "inpainting.pair_masked_region",
    "model.painting": "model.inpainting",
    "start": "init_noise",
    "sampler.start": "sampler.init_noise",
    "images": "max_images",
    "limit": "max_samples",
    "show": "thumbnails",
    "kind": "format",
    "out": "to",
    "checkpoint": "folder, of images by `immiscible sample --pipeline NAME --to FOLDER`",
}
ONLY_IN = {"steps": ("sample", "evaluate")}  # others never had it
PREFIXES = {"optimiser.": "optim.", "evaluation.": "eval.", "codec.painting.": "inpainting."}


def check_command(name: str) -> None:
    """Raise ValueError with the new name of a command."""
    if name in COMMANDS:
        raise ValueError(f"immiscible {name} is now {COMMANDS[name]}")


def check_options(words: Sequence[str], command: str) -> None:
    """Raise ValueError with the new name of the first of ``words`` that is an old option of ``command``.

    Give those that a command does not know: a name may be new in one and old in another.
    """
    for word in words:
        negated = "no-" if word.startswith("--no-") else ""
        name = word.removeprefix("--").removeprefix(negated).partition("=")[0].replace("-", "_")
        new = OPTIONS.get(name) if command in ONLY_IN.get(name, (command,)) else None
        if new is None:
            old = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
            new = old and PREFIXES[old] + name.removeprefix(old)
        if word.startswith("--") and new is not None:
            raise ValueError(f"{word.partition('=')[0]} is now --{negated}{new}")
