"""The command ``immiscible``: finds the subcommand, turns errors into one line and an exit code."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from immiscible_diffusion import __version__
from immiscible_diffusion.cli.renamed import check_command
from immiscible_diffusion.utils.checks import did_you_mean
from immiscible_diffusion.utils.optional_deps import MissingDependencyError, require_extra
from immiscible_diffusion.utils.signals import Interrupted

COMMANDS = {
    "train": "train a recipe; the same command resumes",
    "sample": "make images with a trained run or a published pipeline: 64, or 50,000 for FID",
    "evaluate": "score a trained run, or a folder of images, against real data",
    "compare": "train with and without pairing at equal steps, and report what it saves",
    "report": "write the page of a comparison again, or its tables as LaTeX and CSV",
    "demo": "the comparison to see first: digits, a few minutes on a CPU",
    "analyze": "how mixed data are, and what a coupling changes, in closed form",
    "pilot": "ten minutes on your own data: does pairing help?",
    "describe": "what to expect of a coupling on data of a shape, without data",
    "download": "get all that a recipe needs, before a job without a network",
    "encode": "write the latents of a data set once, to train from them",
    "recipes": "list the recipes, or show one",
}
BAD_INPUT = 2
PACKAGE = str(Path(__file__).parents[1])
PYTHON_FORMAT = warnings.formatwarning


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code: 0 well, 2 bad input, 128 + n on signal n."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if command in ("--version", "-V"):
        sys.stdout.write(f"immiscible {__version__}\n")
        return 0
    if command in ("", "-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0 if command else BAD_INPUT
    try:
        if command not in COMMANDS:
            check_command(command)
            raise ValueError(
                f"unknown command '{command}'; known: {', '.join(COMMANDS)}{did_you_mean(command, COMMANDS)}"
            )
        warnings.simplefilter("default")
        warnings.formatwarning = _format_warning
        # It sets these for a plain start, the port for several processes; the sizes are torchrun's and those of MPI.
        asked = {"ACCELERATE_USE_CPU", "MASTER_PORT"} <= os.environ.keys()
        if asked and not any(name.endswith(("WORLD_SIZE", "PMI_SIZE")) for name in os.environ):
            warnings.warn(
                "accelerate launch was asked for several processes and started one, as always on CPUs; there use "
                "torchrun --nproc_per_node N -m immiscible_diffusion ..., on GPUs --multi_gpu",
                stacklevel=1,
            )
        if command != "describe":  # which needs torch alone
            with require_extra("train", "the command line"):
                import tyro  # noqa: F401
        module = importlib.import_module(f"immiscible_diffusion.cli.{command}")
        return int(module.main(arguments) or 0)
    except SystemExit as stop:  # tyro printed help, or what is wrong
        return int(stop.code or 0)
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before there was anything to keep\n")
        return 128 + 2
    except BrokenPipeError:  # the reader of our output left: immiscible ... | head
        return 128 + 13
    except (ValueError, MissingDependencyError, OSError) as error:
        text = " ".join(str(error).split())
        sys.stderr.write(f"immiscible: error: {text}\n")
        return BAD_INPUT
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        text = str(error).partition("\n")[0]
        sys.stderr.write(f"immiscible: error: out of memory; a smaller network or batch takes less ({text})\n")
        return BAD_INPUT


def _format_warning(message: Any, category: type[Warning], filename: str, *line: Any, **options: Any) -> str:
    """What this package warns of as one line without its source; other warnings as Python prints them."""
    if category is UserWarning and filename.startswith(PACKAGE):
        return f"immiscible: warning: {' '.join(str(message).split())}\n"
    return PYTHON_FORMAT(message, category, filename, *line, **options)


def overview() -> str:
    """What ``immiscible --help`` prints."""
    lines = [f"  {name:10}{text}" for name, text in COMMANDS.items()]
    return (
        "usage: immiscible COMMAND ...\n\n"
        "Pair noise with data before diffusing: fewer training steps.\n\n"
        + "\n".join(lines)
        + "\n\nimmiscible COMMAND --help says more; immiscible recipes lists the recipes.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
