"""The model card, which names the coupling, and the upload to the hub."""

from pathlib import Path

from immiscible_diffusion.applications.stable_diffusion.config import task_of, unet_of
from immiscible_diffusion.applications.stable_diffusion.export.lora import DIFFUSERS, KOHYA
from immiscible_diffusion.applications.stable_diffusion.export.pipeline import check_schedule
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.optional_deps import require_extra

UPLOADED = (
    *("README.md", "recipe.json", "environment.json", "model_index.json"),
    *(DIFFUSERS, KOHYA),
    *("unet/*", "vae/*", "text_encoder*/*", "tokenizer*/*", "scheduler/*", "samples/*"),
)


def model_card(recipe: Recipe, step: int) -> str:
    """A model card in the form of the hub: front matter, settings, and how to load the model.

    Args:
        recipe: of the run.
        step: of training.
    """
    task, unet = task_of(recipe), unet_of(recipe)
    base = None if unet.init == "scratch" else unet.pretrained  # where the weights started
    lora = unet.lora is not None
    tags = ["immiscible-diffusion", "text-to-image", "stable-diffusion"] + ["lora"] * lora
    front = ["library_name: diffusers", "tags:", *(f"- {tag}" for tag in tags)]
    if base and not Path(base).exists():
        front.append(f"base_model: {base}")
    paired = recipe.coupling != "independent"
    noise = f"noise paired with data by `{recipe.coupling}`"
    if not paired:
        noise = "the noise was drawn independently of the data (no pairing)"
    settings = {
        "coupling": f"`{recipe.coupling}`",
        "started from": base or "random weights",
        "data": task.data.path or task.data.name,
        "steps": f"{step:,} of {recipe.steps:,}",
        "batch": f"{recipe.batch_size} ({recipe.gradient_accumulation_steps} micro-batches)",
        "learning rate": f"{recipe.optim.lr:g}",
        "EMA": str(recipe.ema),
        "prediction": recipe.path.prediction,
        "precision": recipe.mixed_precision,
        "seed": recipe.seed,
    }
    source = task.push_to_hub or "THIS FOLDER"
    code = [f'pipeline = DiffusionPipeline.from_pretrained("{base if lora else source}")']
    if lora:
        code.append(f'pipeline.load_lora_weights("{source}")')
    lines = [
        *("---", *front, "---", "", f"# {recipe.name}", ""),
        f"Trained with [immiscible diffusion](https://arxiv.org/abs/2406.12303): {noise}.",
        *("", "| | |", "|---|---|"),
        *(f"| {name} | {value} |" for name, value in settings.items()),
        *("", "Sampling starts from N(0, I), as usual." if paired else "", ""),
        *("```python", "from diffusers import DiffusionPipeline", *code, "```", ""),
        f"Train it with `immiscible train {recipe.name} --coupling {recipe.coupling}`; "
        f"`recipe.json` has every setting.",
    ]
    return "\n".join(lines) + "\n"


def check_before(recipe: Recipe) -> None:
    """Raise ValueError, before hours are spent, for what could not be published or would fail."""
    name = task_of(recipe).push_to_hub
    if name:
        with require_extra("train", "push_to_hub"):
            from huggingface_hub import get_token
        if not get_token():
            raise ValueError(
                f"push_to_hub {name} needs a token of the hub and there is none; run `hf auth login`, or set HF_TOKEN"
            )
    check_schedule(recipe)


def push(folder: Path, name: str) -> None:
    """Upload what others need of ``folder`` as ``name`` to the hub; ValueError if it fails."""
    with require_extra("train", "push_to_hub"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    try:
        api = HfApi()
        api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            allow_patterns=list(UPLOADED),
            commit_message="by immiscible-diffusion",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"the run is complete in {folder}, but was not published as {name} ({reason}); upload "
            f"it by hand: hf upload {name} {folder}"
        ) from error
