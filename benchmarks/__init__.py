"""Measurements side by side, each written to `results/` as JSON with machine and versions."""
