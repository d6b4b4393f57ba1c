"""``immiscible demo``."""

from immiscible_diffusion.cli import compare


def main(arguments: list[str]) -> int:
    """``compare digits-flow`` in five minutes: half of its training, no irreducible losses; in runs/demo."""
    options = {"--out": "runs/demo", "--steps": "1500"}
    given = [word for name, value in options.items() if name not in arguments for word in (name, value)]
    return compare.main(["digits-flow", "--no-irreducible", *given, *arguments])
