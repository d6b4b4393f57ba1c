"""Many pictures for FID: over classes in order, over processes, resumable."""

from immiscible_diffusion.evaluation.bulk.plan import Plan
from immiscible_diffusion.evaluation.bulk.read import BulkPictures, BulkSet
from immiscible_diffusion.evaluation.bulk.run import Draw, missing_rows, run_bulk
from immiscible_diffusion.evaluation.bulk.store import PngStore, Store, TarStore

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
