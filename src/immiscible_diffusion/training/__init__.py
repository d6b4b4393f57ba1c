"""One training run: recipe, task, trainer, checkpoints."""
