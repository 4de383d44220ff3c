"""The run in MLflow and the world it needs, checked before anything expensive starts."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from prefect import task

from lora_select.errors import InputError, WorldError
from lora_select.tracking import comparison
from lora_select.tracking import store as tracking_store
from lora_select.tracking.tracker import Tracker


def check_world(root: Path, uri: str, needed_gib: float) -> None:
    """Fail now on what would fail later.

    Raises:
        InputError: the tracking URI cannot hold a run or does not answer, the runs folder cannot be made, or the disk is
            nearly full.
    """
    tracking_store.check(uri)
    try:
        tracking_store.reach(uri)
    except WorldError as error:
        raise InputError(str(error)) from error
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`runs_dir` {root} cannot be made ({error.strerror}); name a folder that can be written"
        ) from error
    free = shutil.disk_usage(root).free / 2**30
    if free < needed_gib:
        raise InputError(
            f"a run needs about {needed_gib:g} GiB of disk, {root.resolve()} has {free:.1f}; free some or set `runs_dir`"
        )


@task(name="open-run")
def open_run(uri: str, experiment: str, folder: Path, run_key: str, name: str, tags: Mapping[str, str]) -> Tracker:
    """Make the store ready (migrated once), save the comparison view, and find or create the parent run.

    Raises:
        InputError: the store does not answer now; later in the run that would only be noted.
    """
    try:
        ready = tracking_store.prepare(uri, experiment)
    except WorldError as error:
        raise InputError(str(error)) from error
    comparison.save(ready)
    return Tracker.start(ready, folder, run_key, name=name, tags=tags)
