"""Choose a LoRA variant, rank and learning rate for your model and your data, from measurements; then train, check and judge it."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

NAMES = {
    "recommend": "lora_select.api",
    "analyze": "lora_select.api",
    "finetune": "lora_select.api",
    "load": "lora_select.api",
    "retain": "lora_select.retention.standalone",
    "check_data": "lora_select.data.gate.check",
    "InputError": "lora_select.errors",
    "WorldError": "lora_select.errors",
}
"""Public name -> the module that holds it, imported when the name is first asked for."""
MODULES = ("callbacks", "serving", "variants")
"""Public modules."""
__all__ = [
    "WorldError",
    "InputError",
    "analyze",
    "callbacks",
    "check_data",
    "finetune",
    "load",
    "recommend",
    "retain",
    "serving",
    "variants",
]

if TYPE_CHECKING:
    from lora_select import callbacks, serving, variants
    from lora_select.api import analyze, finetune, load, recommend
    from lora_select.data.gate.check import check_data
    from lora_select.errors import InputError, WorldError
    from lora_select.retention.standalone import retain


def __getattr__(name: str) -> Any:
    if name in NAMES:
        value = getattr(importlib.import_module(NAMES[name]), name)
        globals()[name] = value
        return value
    if name in MODULES:
        return importlib.import_module(f"lora_select.{name}")
    raise AttributeError(f"module 'lora_select' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *NAMES, *MODULES})
