"""How every command ends: an error is one sentence with its exit code, and SIGTERM ends it as Python ends."""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable

from lora_select.errors import InputError, WorldError


def exit_code(command: Callable[[], object]) -> int:
    """Run a command: what it returns if that is a number, else 0; 1 the world failed, 2 bad input, 130 stopped.

    SIGTERM raises SystemExit(143), so that what runs at exit (locks, ranks, Prefect's own temporary server) is ended too. What a
    terminal's encoding has not is printed as an escape; a reader that goes away (`| head`) ends the command with 141, unsaid.
    """
    before = _on_sigterm()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except InputError as error:
        return _fail(error, 2)
    except WorldError as error:
        return _fail(error, 1)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still held is written at exit
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _fail("stopped; the same command goes on where this one ended", 130)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _on_sigterm() -> "signal._HANDLER | None":
    try:
        return signal.signal(signal.SIGTERM, _ended)
    except ValueError:  # not the main thread, which no signal reaches
        return None


def _ended(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def _fail(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
