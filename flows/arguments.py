"""The command line of a flow: `--config FILE`, `--dry-run`, and any field as `section.field=value`."""

import argparse
from collections.abc import Callable
from pathlib import Path

from prefect.settings import Settings

from flows.temporary_server import start_guarded
from lora_select.address import masked
from lora_select.cli.ending import exit_code
from lora_select.config import load
from lora_select.environment import unwritable
from lora_select.errors import InputError, WorldError
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
        settings = Settings()
        prefect_answers(settings.api.url, settings.home)
        try:
            if not settings.api.url and settings.server.ephemeral.enabled:
                start_guarded()
            flow(**vars(known), overrides=overrides)
        except RuntimeError as error:
            if "ephemeral Prefect API server" not in str(error):
                raise
            raise WorldError(
                "Prefect's temporary server did not answer in time, as on a machine that is busy: run the same command again, let "
                "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS be longer, or use `lora-select finetune`, which needs no server"
            ) from error

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


def prefect_answers(url: str | None, home: Path) -> None:
    """Fail in seconds, not after Prefect's own retries, when the configured server is away or a temporary one could not start.

    Args:
        url: of the server, from the environment, a profile or prefect.toml; None where each run starts one.
        home: where a temporary server keeps its database.

    Raises:
        InputError: the server does not answer, or is no Prefect server; or nothing can be written into `home`.
    """
    if not url:
        if why := unwritable(home):
            raise InputError(f"Prefect's home {home} cannot be written ({why}); set PREFECT_HOME to a folder that can")
        return
    import httpx

    where = f"the Prefect server at {masked(url)} (PREFECT_API_URL, of the environment or of the profile)"
    try:
        status = httpx.get(f"{url.rstrip('/')}/health", timeout=5).status_code
    except httpx.HTTPError as error:
        raise InputError(
            f"{where} does not answer ({type(error).__name__}); start it with `prefect server start`, or take the setting away "
            "(`prefect config unset PREFECT_API_URL`) to use an ephemeral one"
        ) from error
    if status == 404:
        raise InputError(f"{where} answers, but there is no API of Prefect's; its address ends in /api")
    if status >= 400:
        raise InputError(
            f"{where} answers with {status}; look at its log, or set PREFECT_API_AUTH_STRING where it asks for a password"
        )
