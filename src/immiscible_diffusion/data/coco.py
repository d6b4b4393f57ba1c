"""MS-COCO as it is published: a folder of images and a JSON file of their captions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from immiscible_diffusion.utils.atomic_files import read_json
from immiscible_diffusion.utils.optional_deps import require_extra

if TYPE_CHECKING:
    from immiscible_diffusion.data.load import DataConfig

FOLDERS = {"train": ("train2017", "train2014"), "validation": ("val2017", "val2014")}
DOWNLOAD = (
    "download train2017.zip (or val2017.zip) and annotations_trainval2017.zip from "
    "images.cocodataset.org (zips/ and annotations/), unpack both into one folder, and set "
    "data.path to it; a copy on the hub is read as hub:ID"
)


def coco_rows(config: "DataConfig") -> Any:
    """The images of a split with all their captions (column ``captions``, lists of texts).

    Raises:
        ValueError: the files are not there (says what to download), or are not COCO's.
    """
    if config.path is None:
        raise ValueError(f"the data set coco needs data.path: {DOWNLOAD}")
    root = Path(config.path)
    split = "validation" if config.split in ("val", "test") else config.split
    for name in FOLDERS.get(split, ()):
        file = root / "annotations" / f"captions_{name}.json"
        if file.is_file() and (root / name).is_dir():
            return _rows(root / name, file, config.max_samples)
    folders = " or ".join(FOLDERS.get(split, (f"a split '{config.split}'",)))
    raise ValueError(f"{root} has no {folders} with its annotations/captions_*.json: {DOWNLOAD}")


def _rows(folder: Path, file: Path, max_samples: int | None) -> Any:
    with require_extra("train", "the data set coco"):
        import datasets
    content = read_json(file)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a file of COCO's captions ({error!r})") from error
    ids = [image for image in sorted(names) if image in captions][:max_samples]
    if not ids:
        raise ValueError(f"{file} has no captions")
    features = datasets.Features(
        {
            "image": datasets.Image(decode=False),
            "captions": datasets.Sequence(datasets.Value("string")),
        }
    )
    paths = [{"path": str(folder / names[image]), "bytes": None} for image in ids]
    columns = {"image": paths, "captions": [captions[image] for image in ids]}
    return datasets.Dataset.from_dict(columns, features)
