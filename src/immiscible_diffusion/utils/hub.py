"""Names on the hub with the commit that is meant: ``owner/name@revision``."""

from pathlib import Path


def split_revision(source: str) -> tuple[str, dict[str, str]]:
    """Split ``owner/name@revision`` into what ``from_pretrained`` takes; a folder has no revision."""
    name, at, revision = source.rpartition("@")
    return (name, {"revision": revision}) if at and not Path(source).exists() else (source, {})
