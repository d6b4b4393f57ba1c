"""The hash of the content of a coupling."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from immiscible_diffusion import KNN, Moments
from immiscible_diffusion.analysis.cache import content_of


@dataclass
class Holder:
    inside: object
    name: str = "one"


class Slotted:
    __slots__ = ("inside",)

    def __init__(self, inside):
        self.inside = inside


class Plain:
    def __init__(self, inside):
        self.inside = inside

    @functools.cached_property
    def total(self):
        return torch.zeros(3)


def net(value):
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.zeros_(layer.bias)
    return layer


def table(value):
    long = torch.zeros(2000)
    long[1000] = value
    return long


PAIRS = {
    "tensor": lambda v: table(v),
    "bfloat16": lambda v: torch.full((3,), v, dtype=torch.bfloat16),
    "scalar tensor": lambda v: torch.tensor(v),
    "array": lambda v: np.full(2000, v),
    "array of objects": lambda v: np.array([table(v), "word"], dtype=object),
    "number": lambda v: v,
    "numpy number": lambda v: np.float32(v),
    "list": lambda v: ["a", {"b": (table(v),)}],
    "set": lambda v: {v, 7.0},
    "dataclass": lambda v: Holder(Holder(table(v))),
    "slots": lambda v: Slotted(table(v)),
    "attributes": lambda v: Plain(table(v)),
    "module": lambda v: net(v),
    "generator": lambda v: torch.Generator().manual_seed(int(v)),
    "path": lambda v: Path(f"file{v}"),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS.keys())
def test_equal_content_has_equal_hashes_and_other_content_others(make):
    assert content_of(make(1.0)) == content_of(make(1.0))
    assert content_of(make(1.0)) != content_of(make(2.0))


def test_types_names_and_shapes_count():
    values = [1, 1.0, True, "1", b"1", [1], (1,), Holder(1), Holder(1, "two"), Plain(1), Slotted(1)]
    values += [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4).double(), np.zeros(4), None]
    values += [KeyError, ValueError, len]
    assert len({content_of(value) for value in values}) == len(values)


def test_cached_properties_do_not_count():
    one = Plain(1.0)
    before = content_of(one)
    assert one.total.shape == (3,)
    assert "total" in vars(one)
    assert content_of(one) == before


def test_moments_of_a_center_count():
    near, far = (KNN(4, center=Moments.fit(torch.randn(9, 3) + by)) for by in (0, 5))
    assert content_of(near) != content_of(far)


def test_hash_of_cyclic_objects_terminates():
    circle = Plain(None)
    circle.inside = [circle, table(1.0)]
    assert content_of(circle) == content_of(circle)
