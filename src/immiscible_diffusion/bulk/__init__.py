"""Many pictures for FID: over classes in order, over processes, resumable."""

from immiscible_diffusion.bulk.plan import Plan
from immiscible_diffusion.bulk.read import BulkPictures, BulkSet
from immiscible_diffusion.bulk.run import Draw, missing_rows, run_bulk
from immiscible_diffusion.bulk.store import PngStore, Store, TarStore

__all__ = [
    "BulkPictures",
    "BulkSet",
    "Draw",
    "Plan",
    "PngStore",
    "Store",
    "TarStore",
    "missing_rows",
    "run_bulk",
]
