"""The tar and parquet files that a path names, on this machine or at an address."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from immiscible_diffusion.utils.optional_deps import require_extra

TARS = (".tar", ".tar.gz", ".tgz")
SHARDS = (*TARS, ".parquet")
NUM_REQUESTS = 16  # at once, of a store that is not on this machine
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shard_files(path: str) -> dict[str, str]:
    """The files that ``path`` names, each with its place in the folder that ``path`` is (else an empty text), sorted.

    A path is a file, a folder (with all below it), a pattern with ``*``, or one of them with ``{00000..00099}``, on
    this machine or at an address that fsspec knows (``file://``, ``s3://``, ``https://``). Only files that are named
    one by one may have other endings than .tar, .tar.gz, .tgz and .parquet; of a folder there may be none.

    Raises:
        ValueError: a file does not exist, no file has the pattern, or the store is not known or cannot be reached.
        MissingDependencyError: fsspec, or the package by which it reads the store.
    """
    with require_extra("train", "reading shards"):
        import fsspec
    paths = _numbered(path)
    with require_extra("", f"data.path {path}"):
        try:
            store, roots = fsspec.url_to_fs(path)[0], [fsspec.url_to_fs(name)[1] for name in paths]
        except ImportError as error:
            raise error.__cause__ or error from error
    full = store.unstrip_protocol if "://" in path else str

    def files(path: str, root: str) -> dict[str, str] | None:
        try:
            is_folder = store.info(root)["type"] == "directory" or (not root.endswith(SHARDS) and store.isdir(root))
        except FileNotFoundError:
            inside = dict.fromkeys(store.glob(root), "")
        else:
            if not is_folder:
                return {path: ""}
            inside = {name: str(PurePosixPath(name).relative_to(root)) for name in store.find(root)}
        named = {full(name): place for name, place in sorted(inside.items()) if name.endswith(SHARDS)}
        return named if named or store.isdir(root) else None

    try:
        with ThreadPoolExecutor(NUM_REQUESTS, "shards") as pool:
            found = dict(zip(paths, pool.map(files, paths, roots), strict=True))
    except Exception as error:  # every store has its own
        raise ValueError(f"data.path {path} cannot be listed: {error}") from error
    if missing := [path for path, named in found.items() if named is None]:
        count = f" ({len(missing):,} of {len(paths):,} are missing)" if len(paths) > 1 else ""
        raise ValueError(f"data.path {missing[0]} does not exist{count}")
    return {name: place for named in found.values() for name, place in (named or {}).items()}


def _numbered(path: str) -> list[str]:
    """The paths that a path with {00000..00099} stands for."""
    if not (match := _RANGE.search(path)):
        return [path]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [name for n in numbers for name in _numbered(_RANGE.sub(f"{n:0{len(match[1])}d}", path, count=1))]
