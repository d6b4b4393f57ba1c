"""Hooks of mkdocs: the commands' help, pages of files outside docs/, and the points of the figure.

Every page works on GitHub as it is. On the site a linked file from outside docs/ becomes a page of its own, so that no
link needs the network.
"""

import contextlib
import io
import json
import os
import posixpath
import re
from pathlib import Path, PurePosixPath
from unittest.mock import patch

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from examples.toy_2d.data import toy_data
from immiscible_diffusion.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[1]
OUTSIDE = "repository"  # folder of the site for files from outside docs/
NAMED_BLOCK = re.compile(r"^```python \w+$", re.MULTILINE)  # names are for the tests that run them
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")
LANGUAGES = {".py": "python", ".sbatch": "bash", ".toml": "toml", ".json": "json"}
OF_A_RECIPE, RECIPE = ("train", "compare", "download"), "digits-flow"
SETS = {"eight_gaussians": "Eight blobs", "two_moons": "Two moons", "spiral": "Spiral", "checkerboard": "Checkerboard"}
POINTS = 128


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List every page of docs/results below its index."""
    pages = sorted(f"results/{path.name}" for path in ROOT.glob("docs/results/*.md") if path.name != "README.md")
    for section in config.nav:
        if section.get("Results"):
            section["Results"] = ["results/README.md", *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what no file in docs/ holds: the points, and the files of the repository that pages link."""
    files.append(File.generated(config, "javascripts/plane_data.js", content=plane_data()))
    queue = [ROOT / "docs" / file.src_uri for file in files.documentation_pages() if file.generated_by is None]
    for path in queue:
        for link in LINK.findall(path.read_text("utf-8")):
            target = (path.parent / link).resolve()
            uri = site_uri(target)
            if not target.is_file() or not uri.startswith(OUTSIDE) or files.get_file_from_path(uri):
                continue
            text = target.read_text("utf-8")
            if target.suffix == ".md":
                queue.append(target)
            else:
                text = f"# {target.name}\n\n```{LANGUAGES.get(target.suffix, 'text')}\n{text}```\n"
            files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs/ to where the site has their files; add the help of the commands."""
    here = page.file.src_uri
    outside = here.startswith(OUTSIDE)
    source = ROOT / here.removeprefix(f"{OUTSIDE}/") if outside else ROOT / "docs" / here

    def moved(link: re.Match[str]) -> str:
        target = (source.parent / link[1]).resolve()
        if target.is_dir():  # of which a page is the first
            target = next(iter(sorted(target.glob("README.md")) or sorted(target.glob("*.md"))), target)
        elif not outside and target.is_relative_to(ROOT / "docs"):
            return link[1]
        return posixpath.relpath(site_uri(target), PurePosixPath(here).parent)

    markdown = NAMED_BLOCK.sub("```python", LINK.sub(moved, markdown))
    return markdown + (command_help() if here == "cli.md" else "")


def site_uri(path: Path) -> str:
    """Where the site has a file of the repository, as mkdocs names sources."""
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    uri = f"{OUTSIDE}/{os.path.relpath(path, ROOT)}"
    return uri if path.suffix == ".md" else f"{uri}.md"


def command_help() -> str:
    """What ``immiscible`` and each of its commands print for ``--help``."""
    blocks = ["", fenced(["--help"])]
    for command in COMMANDS:
        blocks += [f"## immiscible {command}", fenced([command, "--help"])]
        if command in OF_A_RECIPE:
            blocks.append(f"With a recipe, here `{RECIPE}`, whose values are the defaults:")
            blocks.append(fenced([command, RECIPE, "--help"]))
    return "\n\n".join(blocks) + "\n"


def fenced(arguments: list[str]) -> str:
    """The command and what it prints, as a block."""
    text = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"}), contextlib.redirect_stdout(text):
        code = main(arguments)
    if code or not text.getvalue().strip():
        raise RuntimeError(f"immiscible {' '.join(arguments)} ended with {code}, and printed: {text.getvalue()!r}")
    lines = "\n".join(line.rstrip() for line in text.getvalue().strip("\n").splitlines())
    return f"```text\n$ immiscible {' '.join(arguments)}\n\n{lines}\n```"


def plane_data() -> str:
    """The points of the figure on the first page, those of ``examples/toy_2d``."""
    sets = {}
    for name, title in SETS.items():
        data = toy_data(name, POINTS)
        points = [round(value, 4) for value in data.points.flatten().tolist()]
        sets[name] = {"title": title, "points": points, "group": data.group.tolist(), "groups": data.groups}
    return f"self.planeData = {json.dumps(sets, separators=(',', ':'))};\n"
