"""What a user can mend, and what the world did: shown as a sentence with an exit code, never as a traceback."""

import importlib.util


class InputError(ValueError):
    """Bad input or config. The message names the rule, the value, the place and the way out."""


class WorldError(RuntimeError):
    """The machine or a service failed (disk, port, server, rank). The message names the place and the way out."""


def require(module: str, extra: str, purpose: str, instead: str = "") -> None:
    """Stop where an optional package is missing.

    Args:
        module: what will be imported.
        extra: the extra of lora-select that brings it.
        purpose: what needs it, as the subject of the sentence.
        instead: what to do without it.

    Raises:
        InputError: one sentence with the line for pip.
    """
    if importlib.util.find_spec(module) is None:
        without = f", or {instead}" if instead else ""
        raise InputError(f"{purpose} needs {module}: pip install 'lora-select[{extra}]'{without}")
