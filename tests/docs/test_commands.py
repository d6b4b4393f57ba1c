"""Every command, option, link, import and table of the README and the docs is of today."""

import ast
import importlib
import re

import pytest

from fixtures.commands import SPAN, check, commands, unknown_options
from helpers import ROOT
from immiscible_diffusion.couplings import check_coupling_name

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
    ]
)
COMMANDS = [(page, command) for page in PAGES for command in commands(page.read_text("utf-8"))]


def name_of(value):
    return value if isinstance(value, str) else value.relative_to(ROOT).as_posix()


def test_there_are_commands():
    assert len(COMMANDS) > 100


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=name_of)
def test_command_parses(page, command):
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "immiscible train cifar10-flow --coupling knm:k=4",
        "immiscible train cifar10-flows",
        "immiscible train cifar10-flow --optim.rate 1",
        "immiscible compare cifar10-flow --coupling knn:k=4 --seeds zero",
        "immiscible compare cifar10-flow --coupling knn:j=4",
        "immiscible evaluate RUN --color red",
        "immiscible analyse --data digits",
        "immiscible analyze --data digits --probe 3",
        "immiscible recipes cifar",
        "accelerate launch -m immiscible_diffusion train digits-flow --precision fp16",
        "OMP_NUM_THREADS=1 python -m examples.toy_2d --datum moons",
        "python benchmarks/coupling_gpu.py --shapes 3,32,32",
        "pip install 'immiscible-diffusion[train,robot]'",
        "make toast",
    ],
)
def test_check_refuses_what_does_not_exist(command):
    with pytest.raises((ValueError, SystemExit, AssertionError)):
        check(command)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_in_the_prose_exist(page):
    if "trainers" not in page.parts:  # pages on other programs name those programs' options
        assert unknown_options(page.read_text("utf-8")) == []


def test_unknown_options_are_found():
    page = "`--optim.lr 1e-4`, `--accumulation 4`, `--data.max-samples`, `--no-matched`"
    assert unknown_options(page) == ["--accumulation"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_couplings_named_in_the_prose_exist(page):
    names = re.findall(r"[| `]((?:[a-z_]+:)+[a-z_]+=[\w,=.]*\w)[ `]", page.read_text("utf-8"))
    for name in names:
        check_coupling_name(name.removeprefix("shuffled:").removeprefix("matched:"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for link in re.findall(r"\]\(([^)#\s]*)(?:#[^)]*)?\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_anchors_exist(page):
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text("utf-8")):
        if not link.startswith("https://"):
            assert anchor in anchors(page.parent / link if link else page), f"{link}#{anchor}"


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_in_spans_exist(page):
    text = page.read_text("utf-8")
    roots = ("tests/", "benchmarks/", "docs/", "reproduce/", "src/immiscible", "examples/")
    spans = {span for span in SPAN.findall(text) if re.fullmatch(r"[\w/.-]+", span)}
    assert [s for s in spans if s.startswith(roots) and not (ROOT / s).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_rows_of_a_table_have_equally_many_cells(page):
    for block in re.split(r"\n\n+", page.read_text("utf-8")):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") - line.count(r"\|") for line in rows}) <= 1, rows[:1]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_imports_of_python_blocks_exist(page):
    blocks = re.findall(r"^```python[^\n]*\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    for block in blocks:
        for line in re.findall(r"^from immiscible_diffusion.*?(?:\)|\w)$", block, re.M | re.S):
            for node in ast.parse(line).body:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"
