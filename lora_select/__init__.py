"""lora-select: which LoRA variant, rank and learning rate suit a model and a dataset, measured before training."""

__version__ = "0.1.0"
