"""``python -m immiscible_diffusion`` is ``immiscible``."""

import sys

from immiscible_diffusion.cli.main import main

if __name__ == "__main__":  # spawned workers import this module too
    sys.exit(main())
