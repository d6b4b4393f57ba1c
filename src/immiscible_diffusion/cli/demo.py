"""``immiscible demo``."""

from immiscible_diffusion.cli import compare


def main(arguments: list[str]) -> int:
    """``compare digits-flow`` in minutes: half of its training, without irreducible losses; by default in runs/demo."""
    options = {"--out": "runs/demo", "--steps": "1500"}
    given = [word for name, value in options.items() if name not in arguments for word in (name, value)]
    return compare.main(["digits-flow", "--no-irreducible", *given, *arguments])
