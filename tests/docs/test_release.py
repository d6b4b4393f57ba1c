"""What goes to the package index: links that work there, and a source distribution that can be tested."""

import shutil
import subprocess
import sys
import tarfile

import pytest

from helpers import ROOT

URL, REF = "https://example.org/owner/name", "v1.2.3"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A copy of the repository's tracked files, prepared for the index."""
    copy = tmp_path_factory.mktemp("release") / "clone"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, ".github/release.py", URL, REF], cwd=copy, check=True)
    return copy, tracked.stdout.splitlines()


def test_every_link_of_the_readme_is_absolute_and_leads_to_a_file(release):
    copy, tracked = release
    links = [part.split(")")[0] for part in (copy / "README.md").read_text().split("](")[1:]]
    own = [link.removeprefix(f"{URL}/") for link in links if link.startswith(URL)]
    assert len(own) > 20
    assert all(link.startswith("https://") for link in links)
    assert {link.split("/", 2)[2].split("#")[0] for link in own} <= set(tracked)
    assert all(link.startswith(("raw/v1.2.3/docs/images/", "blob/v1.2.3/")) for link in own)
    tomllib = pytest.importorskip("tomllib")
    urls = tomllib.loads((copy / "pyproject.toml").read_text())["project"]["urls"]
    assert all(url.startswith(URL) for url in urls.values())


@pytest.mark.subprocess
def test_the_source_distribution_holds_the_tests_and_what_they_read(release):
    copy, tracked = release
    build = [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_sdist('dist'))"]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (archive,) = (copy / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = {name for name in tracked if not name.startswith((".github/", ".ci/", ".gitignore"))}
    assert needed - names == set()
