"""Imports go one way, the core is light, and ``docs/design.md`` shows the rooms as they are."""

import ast
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
    "safetensors", "torchdiffeq", "gym_pusht", "gymnasium", "zarr", "pyarrow", "PIL", "pandas",
    "jinja2", "joblib",
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
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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


def test_knn_can_be_vendored():
    files = ["_validation", "_knn_kernels", "base", "knn"]
    own = {f"{PACKAGE}.couplings.{name}" for name in files}
    for name in files:
        used = set(imported(ast.parse((SOURCE / f"couplings/{name}.py").read_text())))
        others = {use.partition(".")[0] for use in used if use.rpartition(".")[0] not in own}
        assert others - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.subprocess
def test_the_core_loads_nothing_heavy():
    code = f"import sys; from {PACKAGE} import KNN; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert PACKAGE in loaded
    assert not loaded & set(EXTRAS) - {"tqdm"}  # which torch imports itself


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "scipy"])
def test_extras_are_imported_inside_functions(extra):
    for module in MODULES:
        if room_of(module) == "cli" and extra == "tyro":
            continue  # the command line imports its commands when they are called
        tree = parsed(module)
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = imported(ast.Module(body=top, type_ignores=[]))
        assert extra not in {name.partition(".")[0] for name in names}, name_of(module)
