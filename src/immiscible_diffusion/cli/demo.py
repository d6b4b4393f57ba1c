"""``immiscible demo``."""

from immiscible_diffusion.cli import compare


def main(arguments: list[str]) -> int:
    """``immiscible compare digits-flow --out runs/demo``, with the default couplings and seeds."""
    out = [] if "--out" in arguments else ["--out", "runs/demo"]
    return compare.main(["digits-flow", *out, *arguments])
