"""The one exception for what a user can mend: shown as a sentence, exit code 2, never a traceback."""


class InputError(ValueError):
    """Bad input or config. The message names the rule, the value, the place and the way out."""


class WorldError(RuntimeError):
    """The machine or a service failed (disk, port, server, rank). The message names the place and the way out."""
