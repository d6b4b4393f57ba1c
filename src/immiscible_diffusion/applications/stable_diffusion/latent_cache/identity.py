"""What latents are of: hashes of the VAE and of the pictures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.images import all_labels
from immiscible_diffusion.utils.random import keyed_generator

SAMPLE = 64  # pictures of a lazy set that are hashed


def vae_digest(vae: torch.nn.Module) -> str:
    """Hash of a VAE's weights as they are: take it before they are cast to half precision."""
    content = hashlib.sha256()
    for name, value in sorted(vae.state_dict().items()):
        content.update(f"{name}/{value.dtype}/{tuple(value.shape)}".encode())
        content.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return content.hexdigest()[:32]


def data_digest(dataset: Any) -> str:
    """Hash of a data set that does not depend on where it lies.

    Of pictures in memory all are hashed. Of pictures decoded when needed: how many there are, all
    labels, and the files of 64, chosen by how many there are; so other data, another order or
    other labels are told, but not a few pictures that were exchanged among many.
    """
    source = dataset.images if isinstance(dataset, Captioned) else dataset
    if hasattr(source, "rows"):
        return _of_rows(source)
    digest = getattr(source, "digest", None)
    if digest is None:
        raise ValueError(f"the data set {dataset.name} has no digest, so nothing can be cached")
    return str(digest)[:32]


def _of_rows(source: Any) -> str:
    content = hashlib.sha256(json.dumps([len(source), list(source.shape)]).encode())
    if source.num_classes is not None:
        content.update(all_labels(source).numpy().tobytes())
    order = torch.randperm(len(source), generator=keyed_generator(len(source), "digest"))
    for row in order[:SAMPLE].sort().values.tolist():
        for value in source.rows[row].values():
            content.update(_content(value))
    return content.hexdigest()[:32]


def _content(value: Any) -> bytes:
    """The bytes of a cell: an encoded picture, or what JSON makes of it."""
    if not isinstance(value, dict):
        return json.dumps(value, default=str).encode()
    if value.get("bytes") is not None:
        return bytes(value["bytes"])
    return Path(value["path"]).read_bytes() if value.get("path") else b""
