"""Planning, launching, supervising and proving a DeepSpeed training run."""
