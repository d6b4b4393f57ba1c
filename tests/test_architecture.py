"""Imports go one way, the core is light, and files and functions stay short."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "immiscible_diffusion"
SOURCE = ROOT / "src" / PACKAGE

# A module imports from those before it only. Modules that are not named come after all of these.
# fmt: off
ORDER = [
    "extra", "files", "plain", "rng", "device", "principal", "ahead", "moments", "data", "latents",
    "codec", "coupling", "interop", "path", "model", "loss", "sampler", "metric", "analysis",
    "report", "evaluation", "optimiser", "recipe", "recipes", "load", "told", "generate", "judge",
    "progress", "interrupt", "meter", "pictures", "runfolder", "publish", "setup", "feed",
    "validation", "resume", "trainer",
]
EXTRAS = [
    "scipy", "diffusers", "accelerate", "datasets", "sklearn", "matplotlib", "tyro", "rich",
    "safetensors", "torchdiffeq", "gym_pusht", "gymnasium", "zarr", "pyarrow", "PIL",
]
# fmt: on
MODULES = sorted(SOURCE.rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 300, 45


def name_of(module):
    return module.relative_to(SOURCE).as_posix()


def part_of(module):
    """The first name below the package: ``coupling`` of ``coupling/knn.py``."""
    return module.relative_to(SOURCE).with_suffix("").parts[0]


def rank(part):
    return ORDER.index(part) if part in ORDER else len(ORDER)


def imported(tree):
    """Dotted names of every import in ``tree``, inside functions too (``from a import b``: a.b)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_parts(module):
    """Parts of this package that ``module`` imports."""
    for name in imported(ast.parse(module.read_text())):
        package, _, rest = name.partition(".")
        if package == PACKAGE and rest != "__version__":
            yield rest.partition(".")[0]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_one_way(module):
    part = part_of(module)
    if part == "__init__":
        return
    for other in own_parts(module):
        exists = (SOURCE / other).is_dir() or (SOURCE / f"{other}.py").is_file()
        assert exists, f"import {other} by its module, not from the package's front"
        backward = rank(other) > rank(part)
        assert not backward, f"{name_of(module)} imports {other}, which comes after {part}"


def test_no_circles_among_the_last():
    graph = {}
    for module in MODULES:
        graph.setdefault(part_of(module), set()).update(set(own_parts(module)) - {part_of(module)})
    graph.pop("__init__")
    while graph:
        free = [part for part, others in graph.items() if not others & graph.keys()]
        assert free, f"these import each other in a circle: {sorted(graph)}"
        for part in free:
            del graph[part]


def test_order_names_what_exists():
    existing = {part_of(module) for module in MODULES}
    assert set(ORDER) - existing <= {"analysis"}


def test_knn_can_be_vendored():
    files = ["inputs", "nearest", "knn"]
    own = {f"{PACKAGE}.coupling.{name}" for name in files}
    for name in files:
        used = set(imported(ast.parse((SOURCE / f"coupling/{name}.py").read_text())))
        others = {use.partition(".")[0] for use in used if use.rpartition(".")[0] not in own}
        assert others - set(sys.stdlib_module_names) == {"torch"}


def test_the_core_loads_nothing_heavy():
    code = f"import sys; from {PACKAGE} import KNN; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert PACKAGE in loaded
    assert not loaded & set(EXTRAS)


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "scipy"])
def test_extras_are_imported_inside_functions(extra):
    for module in MODULES:
        if part_of(module) == "command" and extra == "tyro":
            continue  # the command line imports its commands when they are called
        tree = ast.parse(module.read_text())
        top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = imported(ast.Module(body=top, type_ignores=[]))
        assert extra not in {name.partition(".")[0] for name in names}, name_of(module)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_files_and_functions_are_short(module):
    text = module.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
