"""Stages that make the adapter: plan, DeepSpeed training, proof in a new process."""

from lora_select.data import tokens as _tokens  # noqa: F401  (kept light: no torch at import)
