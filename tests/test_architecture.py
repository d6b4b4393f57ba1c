"""Imports go one way, the core is light, and ``docs/design.md`` shows the rooms as they are."""

import ast
import os
import subprocess
import sys
from functools import cache

import pytest

from helpers import ROOT

PACKAGE = "immiscible_diffusion"
SOURCE = ROOT / "src" / PACKAGE

# What a room may import besides itself.
ALLOWED = {
    "utils": [],
    "couplings": ["utils"],
    "integrations": ["couplings", "utils"],
    "diffusion": ["utils"],
    "models": ["diffusion", "utils"],
    "data": ["utils"],
    "metrics": ["data", "utils"],
    "training": ["couplings", "data", "diffusion", "models", "utils"],
    "evaluation": ["data", "diffusion", "metrics", "reporting", "training", "utils"],
    "analysis": ["couplings", "data", "diffusion", "reporting", "utils"],
    "reporting": ["utils"],
    "experiments": [
        "analysis", "couplings", "data", "diffusion", "evaluation", "metrics", "models",
        "reporting", "training", "utils",
    ],
    "applications": [
        "couplings", "data", "diffusion", "evaluation", "metrics", "models", "reporting",
        "training", "utils",
    ],
    "recipes": ["applications", "data", "diffusion", "evaluation", "models", "training", "utils"],
    "cli": [
        "analysis", "applications", "couplings", "data", "diffusion", "evaluation", "experiments",
        "metrics", "models", "recipes", "reporting", "training", "utils",
    ],
}  # fmt: skip
EXTRAS = [
    "scipy", "diffusers", "accelerate", "datasets", "sklearn", "matplotlib", "tyro", "rich", "tqdm",
    "safetensors", "torchdiffeq", "gym_pusht", "gymnasium", "zarr", "pyarrow", "PIL", "pandas", "jinja2",
]  # fmt: skip
MODULES = sorted(SOURCE.rglob("*.py"))


def name_of(module):
    return module.relative_to(SOURCE).as_posix()


def room_of(module):
    """The first name below the package: ``couplings`` of ``couplings/knn.py``."""
    return module.relative_to(SOURCE).with_suffix("").parts[0]


@cache
def parsed(module):
    """The syntax tree of a file."""
    return ast.parse(module.read_text())


def imported(tree):
    """Dotted names of every import in ``tree``, inside functions too (``from a import b``: a.b)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = f"{PACKAGE}.couplings." if node.level else ""  # KNN's files, which are vendored
            yield from (f"{above}{node.module}.{alias.name}" for alias in node.names)


def own_imports(module):
    """Modules of this package that ``module`` imports, as ``room.rest``."""
    for name in imported(parsed(module)):
        package, _, rest = name.partition(".")
        if package == PACKAGE and rest != "__version__":
            yield rest


def test_the_rooms_are_those_of_the_table():
    rooms = {path.name for path in SOURCE.iterdir() if path.name != "__pycache__"}
    assert rooms - {"__init__.py", "__main__.py", "py.typed"} == ALLOWED.keys()


def test_the_design_page_shows_the_table():
    page = (ROOT / "docs" / "design.md").read_text()
    block = page.partition("```python\nALLOWED = ")[2].partition("```")[0]
    assert ast.literal_eval(block) == ALLOWED


def test_allowed_has_no_circles():
    graph = {room: set(others) for room, others in ALLOWED.items()}
    while graph:
        free = [room for room, others in graph.items() if not others & graph.keys()]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for room in free:
            del graph[room]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_one_way(module):
    room = room_of(module)
    if room in ("__init__", "__main__"):
        return
    allowed = {room, *ALLOWED[room]}
    wrong = [name for name in own_imports(module) if name.partition(".")[0] not in allowed]
    assert not wrong, f"{name_of(module)} imports {', '.join(wrong)}"


def test_applications_know_only_images():
    """Text-to-image is an application of images; apart from that none knows another."""
    for module in (SOURCE / "applications").rglob("*.py"):
        own = module.relative_to(SOURCE / "applications").parts[0]
        others = {n.split(".")[1] for n in own_imports(module) if n.startswith("applications.")}
        assert others <= {own, "images"}, name_of(module)


VENDORED = ["_validation", "_knn_kernels", "_knn_triton", "base", "knn"]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_are_absolute_but_in_files_that_are_vendored(module):
    levels = {node.level for node in ast.walk(parsed(module)) if isinstance(node, ast.ImportFrom)}
    vendored = name_of(module) in [f"couplings/{name}.py" for name in VENDORED]
    assert levels <= ({0, 1} if vendored else {0})


HIDE = f"import sys; sys.modules.update(dict.fromkeys({['numpy', *EXTRAS]}))"  # as if not installed


def run_with_torch_alone(code, path):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{HIDE}\n{code}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout + run.stderr


@pytest.mark.subprocess
def test_knn_can_be_vendored(tmp_path):
    own = tmp_path / "trainer" / "noise"
    own.mkdir(parents=True)
    for name in VENDORED:
        text = (SOURCE / f"couplings/{name}.py").read_text()
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0")
        (own / f"{name}.py").write_text(text)
    code = f"""
sys.modules["{PACKAGE}"] = None
import torch
from trainer.noise.knn import KNN
data = torch.randn(64, 48)
print(float((KNN(64)(data, mask=torch.arange(48) < 40) * data).mean()), KNN(4))
"""
    pull, name = run_with_torch_alone(code, tmp_path).split()
    assert float(pull) > 0.1
    assert name == "knn:k=4"


@pytest.mark.subprocess
def test_the_core_needs_torch_alone():
    code = f"""
import torch
from {PACKAGE} import KNN, Calibrated, GaussianOT, LinearAssignment, Moments, NoiseDistribution, PairedLoader, Shuffled
from {PACKAGE}.__main__ import main
data = torch.randn(64, 6)
moments = Moments.fit(data, directions=2)
law = NoiseDistribution.measure(KNN(4), data.split(32), moments)
for coupling in (KNN(4, center=moments), GaussianOT(moments), Shuffled(KNN(4)), Calibrated(KNN(4), law)):
    assert coupling(data).shape == data.shape
assert moments == Moments.fit(data, directions=2)
assert len(list(PairedLoader(data.split(32), KNN(4)))) == 2
assert main(["describe", "knn:k=4", "shuffled:knn:k=4,center=mean", "--shape", "3,8,8"]) == 0
for command in ("describe assignment --shape 3,8,8", "recipes"):
    assert main(command.split()) == 2
"""
    said = run_with_torch_alone(code, SOURCE.parent)
    assert "0.84" in said  # the pull
    assert "linear assignment needs the package 'scipy', which is not installed; run: pip install scipy\n" in said
    assert "needs the package 'tyro', which is not installed; run: pip install tyro " in said


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "scipy"])
def test_extras_are_imported_inside_functions(extra):
    for module in MODULES:
        if room_of(module) == "cli" and extra == "tyro":
            continue  # the command line imports its commands when they are called
        tree = parsed(module)
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = imported(ast.Module(body=top, type_ignores=[]))
        assert extra not in {name.partition(".")[0] for name in names}, name_of(module)
