"""The command line of a flow: `--config FILE`, `--dry-run`, and any field as `section.field=value`."""

import argparse
import os
from collections.abc import Callable

from lora_select.address import masked
from lora_select.cli.ending import exit_code
from lora_select.config import load
from lora_select.errors import InputError
from lora_select.pipeline.run import check


def run_from_command_line(flow: Callable[..., object], description: str, *, may_dry_run: bool) -> int:
    """Parse, check config, data, stores and Prefect in a second, then run; return the exit code: 0 done, 1 the world failed, 2 bad input, 130 stopped."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="a YAML file, such as infra/runs/quickstart.yaml")
    if may_dry_run:
        parser.add_argument("--dry-run", action="store_true", help="stop after the plan")
    known, rest = parser.parse_known_args()
    overrides = _overrides(rest)

    def command() -> None:
        check(load(known.config, overrides))
        _prefect_answers(os.environ.get("PREFECT_API_URL"))
        flow(**vars(known), overrides=overrides)

    return exit_code(command)


def _overrides(rest: list[str]) -> list[str]:
    """`--a.b=c`, `a.b=c` and `--a.b c` all mean the same."""
    joined: list[str] = []
    words = iter(rest)
    for word in words:
        if word.startswith("--") and "=" not in word:
            word = f"{word}={next(words, '')}"
        joined.append(word)
    return joined


def _prefect_answers(url: str | None) -> None:
    """Fail in seconds, not after Prefect's own retries, when the configured server is away.

    Raises:
        InputError: `PREFECT_API_URL` is set and does not answer.
    """
    if not url:
        return
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(
            f"the Prefect server at PREFECT_API_URL={masked(url)} does not answer ({type(error).__name__}); start it with "
            "`prefect server start`, or unset the variable to use an ephemeral one"
        ) from error
