"""Which rows say nearly the same, and so stay on one side of a split."""
