"""The model card, which names the coupling, and the way to the hub."""

from pathlib import Path

from immiscible_diffusion.applications.stable_diffusion.config import task_of, unet_of
from immiscible_diffusion.applications.stable_diffusion.export.lora import DIFFUSERS, KOHYA
from immiscible_diffusion.applications.stable_diffusion.export.pipeline import check_schedule
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.optional_deps import require_extra

PUBLISHED = (
    *("README.md", "recipe.json", "environment.json", "model_index.json"),
    *(DIFFUSERS, KOHYA),
    *("unet/*", "vae/*", "text_encoder*/*", "tokenizer*/*", "scheduler/*", "samples/*"),
)
INDEPENDENT = "the noise was drawn independently of the data (no pairing)"


def model_card(recipe: Recipe, step: int) -> str:
    """A model card in the form the hub reads: front matter, then what it is and how it was made.

    Args:
        recipe: what was trained.
        step: how far.
    """
    base = origin(recipe)
    lora = unet_of(recipe).lora is not None
    tags = [
        "immiscible-diffusion",
        "text-to-image",
        "stable-diffusion",
        *(["lora"] if lora else []),
    ]
    front = ["---", "library_name: diffusers", "tags:", *(f"- {tag}" for tag in tags)]
    if base and not Path(base).exists():
        front.append(f"base_model: {base}")
    paired = recipe.coupling != "independent"
    how = f"noise paired with data by `{recipe.coupling}`" if paired else INDEPENDENT
    lines = [
        *[*front, "---", "", f"# {recipe.name}", ""],
        f"Trained with [immiscible diffusion](https://arxiv.org/abs/2406.12303): {how}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _settings(recipe, step, base).items()),
        "",
        "Sampling starts from N(0, I), as everywhere." if paired else "",
        "",
        "```python",
        *_use(base, lora, recipe),
        "```",
        "",
        f"`immiscible train {recipe.name} --coupling {recipe.coupling}` trains it; `recipe.json` "
        f"has every setting.",
    ]
    return "\n".join(lines) + "\n"


def origin(recipe: Recipe) -> str | None:
    """Whose weights the network began with; None for random ones."""
    unet = unet_of(recipe)
    return None if unet.init == "scratch" else unet.pretrained


def _settings(recipe: Recipe, step: int, base: str | None) -> dict[str, object]:
    data = task_of(recipe).data
    return {
        "coupling": f"`{recipe.coupling}`",
        "started from": base or "random weights",
        "data": data.path or data.name,
        "steps": f"{step:,} of {recipe.steps:,}",
        "batch": f"{recipe.batch_size} ({recipe.gradient_accumulation_steps} micro-batches)",
        "learning rate": f"{recipe.optim.lr:g}",
        "average of weights": str(recipe.ema),
        "prediction": getattr(recipe.path, "prediction", "velocity"),
        "precision": recipe.mixed_precision,
        "seed": recipe.seed,
    }


def _use(base: str | None, lora: bool, recipe: Recipe) -> list[str]:
    if lora:
        return [
            "from diffusers import DiffusionPipeline",
            f'pipeline = DiffusionPipeline.from_pretrained("{base}")',
            f'pipeline.load_lora_weights("{task_of(recipe).push_to_hub or "THIS FOLDER"}")',
        ]
    return [
        "from diffusers import DiffusionPipeline",
        f'pipeline = DiffusionPipeline.from_pretrained("{task_of(recipe).push_to_hub or "THIS FOLDER"}")',
    ]


def check_before(recipe: Recipe) -> None:
    """Raise ValueError for what could not be published, or goes wrong, before hours are spent."""
    name = task_of(recipe).push_to_hub
    if name:
        with require_extra("train", "push_to_hub"):
            from huggingface_hub import get_token
        if not get_token():
            raise ValueError(
                f"push_to_hub {name} needs a token of the hub and there is none; run "
                f"`hf auth login`, or set HF_TOKEN"
            )
    check_schedule(recipe)


def push(folder: Path, name: str) -> None:
    """Publish what others need of ``folder`` as ``name`` on the hub; ValueError if it fails."""
    with require_extra("train", "push_to_hub"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=list(PUBLISHED),
            commit_message="by immiscible-diffusion",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the run is whole in {folder}, but was not published as {name} ({reason}); do it by "
            f"hand: hf upload {name} {folder}"
        ) from error
