"""Prepare a clone for the package index: absolute links in README.md, ``project.urls`` in pyproject.toml.

    python .github/release.py https://github.com/OWNER/NAME v0.2.0 && python -m build && twine check --strict dist/*

Links are relative in the repository, so that forks, clones and the docs site follow their own files. On an index page
they would be dead. The release workflow knows the repository's address; nothing here guesses it.
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#|mailto:)([^)\s]+)\)")


def absolute(readme: str, url: str, ref: str) -> str:
    """``readme`` with every relative link to the file at ``ref``; images to its bytes."""

    def link(match: re.Match[str]) -> str:
        mark, text, path = match.groups()
        return f"{mark}{text}({url}/{'raw' if mark else 'blob'}/{ref}/{path})"

    return LINK.sub(link, readme)


def main(url: str, ref: str, root: Path = Path()) -> None:
    """Rewrite README.md and pyproject.toml below ``root``."""
    readme, project = root / "README.md", root / "pyproject.toml"
    text = project.read_text("utf-8")
    if "[project.urls]" in text:
        raise SystemExit(f"{project} has [project.urls] already; start from a clean clone")
    urls = {"Homepage": url, "Documentation": f"{url}/tree/{ref}/docs", "Changelog": f"{url}/blob/{ref}/CHANGELOG.md"}
    lines = "\n".join(f'{name} = "{value}"' for name, value in urls.items())
    project.write_text(text.replace("[project.scripts]", f"[project.urls]\n{lines}\n\n[project.scripts]"), "utf-8")
    readme.write_text(absolute(readme.read_text("utf-8"), url.rstrip("/"), ref), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
