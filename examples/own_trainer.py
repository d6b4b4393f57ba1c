"""A whole training loop with this library's parts: digits, flow matching, KNN noise selection.

``python examples/own_trainer.py --steps 1500 --coupling knn:k=4``
"""

import argparse

import torch
from accelerate import Accelerator

from immiscible_diffusion import PairedLoader, parse_coupling
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.dataloader import TrainDataLoader
from immiscible_diffusion.training.ema import EMA
from immiscible_diffusion.training.optim import make_optimizer
from immiscible_diffusion.utils.images import image_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--coupling", default="knn:k=4")
    parser.add_argument("--out", default="digits.png")
    options = parser.parse_args()

    recipe, accelerator, steps = recipe_from_name("digits-flow"), Accelerator(), options.steps
    path, loss_fn = recipe.path, recipe.loss
    task = recipe.task.build(recipe, accelerator.device)
    model = task.build_model().to(accelerator.device)
    coupling = parse_coupling(options.coupling)
    data = task.encode(task.dataset.batch(torch.arange(len(task.dataset)))).data
    model.fit((part, coupling(part)) for part in data.split(recipe.batch_size))  # what no linear map predicts is left
    ema = EMA(recipe.ema, model)
    optimizer, lr_schedule = make_optimizer(recipe.optim, model, steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = TrainDataLoader(task.dataset, recipe.batch_size, recipe.seed, accelerator.device)

    step = 0
    for batch in PairedLoader(loader, coupling, task.encode, streams=loader.streams, start=step):
        t = path.sample_time(len(batch.data), generator=batch.rng.time)
        cond = task.drop_conditions(batch.cond, batch.rng)
        losses = loss_fn(model, path, batch.data, batch.noise, t, cond, batch.mask, progress=step / steps)
        accelerator.backward(losses.mean())
        optimizer.step()
        optimizer.zero_grad()
        lr_schedule.step()
        ema.update(model)
        step += 1  # noqa: SIM113 - the loop reads as in the trainer
        if step % 100 == 0:
            print(f"step {step}: loss {losses.mean():.4f}")
        if step == steps:
            break

    pipeline = SamplingPipeline(path, recipe.sampler, task.shape, accelerator.device)
    images = torch.cat([images for images, _ in pipeline(ema.model, 64, seed=0)])
    image_grid(images).save(options.out)


if __name__ == "__main__":
    main()
