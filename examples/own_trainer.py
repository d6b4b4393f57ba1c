"""A training loop of one's own, with pairing: the line to look at is ``noise = coupling(data)``.

python examples/own_trainer.py                  # 1,000 steps on the digits of scikit-learn
python examples/own_trainer.py --k 1            # without pairing, the same loop
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from immiscible_diffusion import KNN, Moments
from immiscible_diffusion.integrations import pull


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(65, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.manual_seed(0)

    images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1  # [1797, 64], -1 to 1
    coupling = KNN(k=options.k, center=Moments.fit(images))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    for step in range(options.steps):
        data = images[torch.randint(len(images), (128,))]
        noise = coupling(data)  # was: noise = torch.randn_like(data)
        t = torch.rand(len(data), 1)
        x_t = (1 - t) * data + t * noise  # one noise for the mixture ...
        target = noise - data  # ... and for the target
        loss = (model(torch.cat([x_t, t], dim=1)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % max(1, options.steps // 5) == 0:
            lean = pull(data - images.mean(dim=0), noise).mean()
            print(f"step {step + 1}: loss {loss:.3f}, pull {lean:.2f} (0 without pairing)")

    x = torch.randn(16, 64)  # sampling is as it always was
    with torch.no_grad():
        for i in range(20, 0, -1):
            x -= model(torch.cat([x, torch.full((16, 1), i / 20)], dim=1)) / 20
    size, wanted = (rows.square().mean().sqrt().item() for rows in (x, images))
    print(f"root mean square of 16 samples {size:.2f}, of the data {wanted:.2f}")


if __name__ == "__main__":
    main()
