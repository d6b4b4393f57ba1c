"""How trained models are sampled and scored."""
