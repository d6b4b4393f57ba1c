"""What pairing costs at users' shapes, and assignment beside other people's solvers.

    OMP_NUM_THREADS=1 python benchmarks/users_shapes.py --json FILE --markdown FILE

KNN at batch size 1 and 4 on image and video latents, in units of ``torch.randn`` and against the
published algorithm; linear assignment beside torchcfm and POT. Measured as ``coupling_cost.py``
does: one process, one thread, the two sides of a row by turns. No bars.
"""

import argparse
import importlib.util
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from coupling_cost import Case, Draw, Row, machine, markdown, measure, published_knn, randn
from torch import Tensor

from immiscible_diffusion import KNN, LinearAssignment

SHAPES = ((4, 128, 128), (16, 128, 128), (16, 21, 60, 104))
BATCHES, CANDIDATES = (1, 4), (2, 8, 64)
SOLVED, IMAGE = (128, 256, 512, 1024), 3072
MOST_BYTES = 4e9
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def torchcfm_exact(data: Tensor) -> Tensor:
    """What torchcfm does: ``OTPlanSampler("exact")``, a plan by POT and pairs drawn from it."""
    from torchcfm.optimal_transport import OTPlanSampler

    noise, _ = OTPlanSampler("exact").sample_plan(torch.randn(data.shape), data)
    return noise


def pot_emd(data: Tensor) -> Tensor:
    """POT's exact solver on the squared distance; each row of the plan has one entry."""
    import ot

    noise = torch.randn(data.shape)
    cost = torch.cdist(data, noise).square().double().numpy()
    plan = ot.emd([], [], cost)
    return noise[torch.as_tensor(plan.argmax(axis=1))]


def published_bytes(batch: int, dim: int, k: int, dtype: torch.dtype) -> int:
    """What published KNN holds at a time: candidates, and in ``dtype`` a copy and differences."""
    copies = 1 if dtype == torch.float32 else 2
    return batch * dim * k * (4 + copies * dtype.itemsize)


def shape_cases(shapes: tuple[tuple[int, ...], ...]) -> Iterator[Case | str]:
    """KNN beside randn and the published algorithm; a sentence where that does not fit."""
    for shape in shapes:
        dim, name = math.prod(shape), "x".join(map(str, shape))
        for batch in BATCHES:
            for k in CANDIDATES:
                ours = KNN(k)
                yield Case(f"{name}, KNN k={k} vs randn", batch, dim, ours, randn, ours)
                for word, dtype in DTYPES.items():
                    title = f"{name}, KNN k={k} vs published, {word}"
                    needed = published_bytes(batch, dim, k, dtype)
                    if needed > MOST_BYTES:
                        yield f"{title}, B = {batch}: needs {needed / 1e9:.1f} GB, not run"
                    else:
                        yield Case(title, batch, dim, published_knn(k, dtype), ours, ours)


def solver_cases(batches: tuple[int, ...]) -> Iterator[Case | str]:
    """Assignment beside other people's, on image-like data."""
    peers: dict[str, tuple[str, Draw]] = {"torchcfm exact": ("torchcfm", torchcfm_exact), "POT emd": ("ot", pot_emd)}
    ours = LinearAssignment()
    for name, (module, peer) in peers.items():
        if any(importlib.util.find_spec(needed) is None for needed in (module, "ot")):
            yield f"{name}: not installed (pip install --no-deps torchcfm POT)"
            continue
        for batch in batches:
            yield Case(f"assignment vs {name}", batch, IMAGE, peer, ours, ours)


def run(cases: Iterator[Case | str], repeats: int, seconds: float) -> tuple[list[Row], list[str]]:
    """Rows, and what was left out. Long rows get fewer repeats."""
    rows, left = [], []
    for case in cases:
        if isinstance(case, str):
            left.append(case)
        else:
            rows.append(replace(timed_within(case, repeats, seconds), bar=""))
        print(left[-1] if isinstance(case, str) else rows[-1].title, file=sys.stderr)
    return rows, left


def timed_within(case: Case, repeats: int, seconds: float) -> Row:
    """``measure`` with as many repeats as fit into ``seconds``, two at least."""
    began = time.perf_counter()
    row = measure(case, 1)
    once = (row.slow_wall_ms + row.fast_wall_ms) / 1e3
    more = min(repeats, int((seconds - (time.perf_counter() - began)) / once))
    return measure(case, max(2, more)) if repeats > 1 else row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="most repeats of a row (15)")
    parser.add_argument("--seconds", type=float, default=10, help="for a row, about (10)")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes, batches = (((4, 8, 8),), (8,)) if options.tiny else (SHAPES, SOLVED)
    cases = (case for part in (shape_cases(shapes), solver_cases(batches)) for case in part)
    rows, left = run(cases, options.repeats, options.seconds)
    where = machine(options.repeats) | {"seconds a row, about": f"{options.seconds:g}"}
    table = "\n".join([markdown(rows, where), *(["", *(f"- {text}" for text in left)])])
    print(table)
    if options.json:
        record = {"machine": where, "rows": [asdict(row) for row in rows], "left out": left}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(table + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
