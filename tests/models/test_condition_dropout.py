import torch

from immiscible_diffusion.models.condition_dropout import drop_text


def test_a_fraction_of_prompts_becomes_the_empty_one():
    cond = {"text": torch.ones(4000, 3, 2), "pooled": torch.ones(4000, 5), "label": torch.arange(4000)}
    empty = {"text": torch.zeros(1, 3, 2), "pooled": torch.full((1, 5), 7.0)}
    dropped = drop_text(cond, empty, 0.1, torch.Generator().manual_seed(0))
    hidden = dropped["text"][:, 0, 0] == 0
    assert abs(float(hidden.float().mean()) - 0.1) < 4 * (0.09 / 4000) ** 0.5
    assert torch.equal(dropped["pooled"][:, 0] == 7, hidden), "both parts of a prompt go together"
    assert torch.equal(dropped["label"], cond["label"])
    assert (drop_text(cond, empty, 1.0)["text"] == 0).all()
    assert (drop_text(cond, empty, 0.0)["text"] == 1).all()
