"""Opening and closing a run: its key, its folder, its MLflow parent, and one line on the terminal for each stage."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

from prefect.runtime import flow_run

from flows import console
from flows.summaries import summary
from lora_select import __version__, records
from lora_select.config import RunConfig
from lora_select.data.intake import check_source
from lora_select.errors import InputError
from lora_select.records import BaseModel
from lora_select.records.digests import key_of, library_digest, source_digest
from lora_select.variants import support
from tasks import store, track
from tasks.data import resolve_model
from tasks.stage import Outcome, Place, Stage

R = TypeVar("R")
NEEDED_DISK_GIB = 2.0


@final
@dataclass(frozen=True)
class Run:
    """An open run: what it was asked, the base model, its key and where it works."""

    config: RunConfig
    base: BaseModel
    key: str
    place: Place

    @property
    def folder(self) -> Path:
        """The folder that a person opens."""
        return self.place.root / self.key

    def do(self, stage: Stage[R], name: str, /, **inputs: Any) -> Outcome[R]:
        """Run or reuse a stage, show its record in the run's folder as `<name>.json`, and print what came out."""
        outcome = stage(self.place, label=name, **inputs)
        store.view(self.place.root, self.key, outcome.ref, name)
        console.done(name, outcome.reused, outcome.seconds, summary(outcome.record))
        return outcome


def run_key(config: RunConfig, base: BaseModel) -> str:
    """The run's name: the same config on the same bytes with the same library is the same run."""
    sources = [source_digest(config.dataset.source), source_digest(config.dataset.eval_source or "")]
    return key_of({"config": config.digested(), "sources": sources, "base": base.digest, "library": library_digest()})


def check(config: RunConfig) -> None:
    """Refuse at once what needs neither the orchestrator nor the model to be seen.

    Raises:
        InputError: no such data, no place for the runs, a tracking URI that can hold none, or a named variant that was seen
            to fail in this setting.
    """
    for source in (config.dataset.source, config.dataset.eval_source):
        if source:
            check_source(source)
    track.check_world(Path(config.runs_dir), config.tracking.uri, NEEDED_DISK_GIB)
    _check_variant(config)


def _check_variant(config: RunConfig, base: BaseModel | None = None) -> None:
    seen = support.faults(
        config.selection.variant or "",
        quantized_base=config.base_model.quantize,
        zero_stage=0 if config.training.zero_stage == "auto" else config.training.zero_stage,
        must_merge=config.selection.must_merge,
        architecture=base.architecture if base else None,
    )
    if seen:
        raise InputError(f"`selection.variant` {config.selection.variant} does not work in this setting: {seen[0]}")


@contextmanager
def opened(config: RunConfig) -> Iterator[Run]:
    """Check the world, name the run, open its MLflow parent; close it as FINISHED, FAILED or KILLED."""
    check(config)
    root = Path(config.runs_dir)
    base = resolve_model(config.base_model.source, config.base_model.revision)
    _check_variant(config, base)
    key = run_key(config, base)
    folder = root / key
    folder.mkdir(parents=True, exist_ok=True)
    records.write_text(folder / "config.json", config.model_dump_json(indent=2) + "\n")
    tracker = track.open_run(config.tracking.uri, config.tracking.experiment, folder, key, config.name, _tags(base))
    console.say(
        f"lora-select {__version__}: {config.name}, {base.source} ({base.num_parameters / 1e6:.1f} M parameters), run {key}"
    )
    try:
        yield Run(config, base, key, Place(root, tracker))
    except BaseException as error:
        tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    left = tracker.finish()
    if left:
        console.say(f"MLflow missed {left} entries; they are kept and sent by the next run of the same config")


def _tags(base: BaseModel) -> dict[str, str]:
    return {
        "model.sha256": base.digest,
        "library.digest": library_digest(),
        "prefect.flow_run_id": str(flow_run.id or ""),
        "git.commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
