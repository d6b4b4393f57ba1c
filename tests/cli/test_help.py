"""What ``--help`` says of every option."""

import dataclasses
import importlib
import re
import typing

from tyro import _docstrings

from immiscible_diffusion.cli.main import COMMANDS
from immiscible_diffusion.utils.serialization import kinds_of

FRAGMENT = re.compile("(of|for|in|with|to|by|from|on|at|that|or|and|as|until|if|between) ")
NOT_OPTIONS = ("Arrays", "ArrayConfig")  # a pilot's own task


def options_of(kind, known):
    """Every option of a command, of parts of a recipe of every kind as well: its class, name and help."""
    if kind in known or kind.__name__ in NOT_OPTIONS or not kind.__module__.startswith("immiscible_diffusion."):
        return  # other tests import applications of their own
    known.add(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield f"{kind.__name__}.{field.name}", _docstrings.get_field_docstring(kind, field.name, ())
        for part in kinds_of(hints[field.name]).values():
            if dataclasses.is_dataclass(part):
                yield from options_of(part, known)


def test_no_help_is_missing_or_a_fragment():
    known = set()
    modules = [importlib.import_module(f"immiscible_diffusion.cli.{name}") for name in COMMANDS]
    found = [one for module in modules if hasattr(module, "Options") for one in options_of(module.Options, known)]
    assert len(found) > 250
    assert [name for name, text in found if not text or FRAGMENT.match(text)] == []
