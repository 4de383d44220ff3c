"""What tasks hold: one object that logs a pipeline run to MLflow and never fails a stage because MLflow failed.

At start-up an unreachable MLflow is an error (`store.prepare`). Later, what cannot be sent waits in `outbox.jsonl` in
the run's folder and is sent at the end of a stage, at the end of the run, or by the next run in the same folder.
"""

import dataclasses
import json
import logging
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

from lora_select import records
from lora_select.address import scrub
from lora_select.tracking import comparison, names, outbox, runs
from lora_select.tracking.entries import Entries, from_plain, of, rival, rival_run
from lora_select.tracking.store import Store, is_outage, web_address
from lora_select.tracking.upload import Shipment, ship

log = logging.getLogger(__name__)
PAUSE_S = 30.0
"""After an outage MLflow is left alone this long, so that a dead server does not slow the training loop."""


@final
class Tracker:
    """One pipeline run in MLflow: a parent, and a child per stage that does work.

    Everything goes to the parent too (without large files), so that one row holds a whole run and two runs compare.
    `tracking.json` in the run's folder notes which runs hold the work; `lora-select compare` reads it.
    """

    def __init__(self, store: Store, folder: Path, parent: str):
        self.store = store
        self.folder = folder
        self.parent = parent
        self.degraded = False
        self.tell: Callable[[str], None] = _tell
        """Shows a person a sentence at once."""
        self._outbox = folder / "outbox.jsonl"
        before = read_notes(folder)
        self._stages: dict[str, dict[str, Any]] = before.get("stages", {})
        self._states: dict[str, str] = before.get("states", {}) if before.get("parent_run_id") == parent else {}
        self._certain: set[str] = set()
        self._silent_until = 0.0

    @classmethod
    def start(
        cls, store: Store, folder: Path, run_key: str, *, name: str, tags: Mapping[str, str] | None = None
    ) -> "Tracker":
        """Find or create the parent run, after sending what an earlier run in `folder` could not.

        Args:
            store: from `store.prepare`.
            folder: the run's folder, `runs/<run-key>`; it must exist.
            run_key: what makes the run the same run after a kill.
            name: the run's name in MLflow.
            tags: see `names`: dataset, model, flow run, commit, library digest.

        Raises:
            mlflow.exceptions.MlflowException: MLflow went away between `prepare` and this call.
        """
        before = read_notes(folder)
        if before.get("uri") == store.uri and before.get("parent_run_id"):
            cls(store, folder, before["parent_run_id"]).flush()
        tracker = cls(store, folder, runs.find_or_create_parent(store, run_key, name=name, tags=tags))
        tracker._write_notes()
        return tracker

    def begin(self, stage: str) -> None:
        """Open the stage's child run, or take up the one that a killed attempt left open."""
        if not self._is_open(stage):
            self._stages[stage] = {"token": uuid.uuid4().hex, "parent": self.parent, "open": True}
            self._write_notes()  # before the run exists: a kill in between must not leave a second child
        self._do("begin", stage)

    def log(self, stage: str, record: Any, folder: Path | None = None, *, reused: bool = False) -> None:
        """Log one record of `lora_select.records`: to the stage's child and, without large files, to the parent.

        Args:
            stage: name of the stage; `begin` was called unless `reused`.
            record: what the stage returned.
            folder: the stage's folder, which the record's file names are relative to.
            reused: True when nothing was done: only the parent is told, with the id of the run that did the work.
        """
        made = of(record, folder, stage=stage)
        own = stage == names.LABELS[type(record).__name__]
        killed = reused and self._is_open(stage)  # after the record was written, before it was logged
        if not reused or killed:
            self._add(stage, made)
            if isinstance(record, records.Adapter) and not own:
                self._add(stage, rival_run(record))
            if isinstance(record, records.Evaluation):
                self._log_rivals(record)
        self._add(None, self._summary(stage, made, own, reused and not killed))
        if isinstance(record, records.Adapter) and folder:
            self._log_curve(stage, (folder / record.metrics_file.path).resolve(), own, reused and not killed)
        if killed:
            self.end(stage)

    def ship(self, metrics: Path, stage: str = names.LABELS["Adapter"]) -> int:
        """Ship new training steps now, if MLflow answers; returns 0 when none wait. Call it every few seconds.

        They go to the stage's run and, for the run's own adapter, to the parent, whose curve a comparison draws.
        """
        if time.monotonic() < self._silent_until or self.flush():
            return 1
        try:
            stages = [stage, None] if stage == names.LABELS["Adapter"] else [stage]
            return max(self._ship(self._run_of(self._target(each)), metrics) for each in stages)
        except Exception as error:
            self._note_outage(error)
            return 1

    def end(self, stage: str, status: str = "FINISHED") -> None:
        """Close the stage's child run: FINISHED, FAILED or KILLED; then send what waits."""
        self._do("end", stage, status=status, end_ms=int(time.time() * 1000))
        self._stages[stage]["open"] = False
        self._write_notes()
        self.flush()

    def rename(self, name: str) -> None:
        """Call the parent run `name` where runs are listed."""
        self._add(None, Entries(tags={names.RUN_NAME: name}, timestamp_ms=int(time.time() * 1000)))

    def finish(self, status: str = "FINISHED") -> int:
        """Close the parent run and send what waits; returns how many operations are left for the next run."""
        self._do("end", None, status=status, end_ms=int(time.time() * 1000))
        return self.flush()

    def flush(self) -> int:
        """Send what waits, now; returns how many operations are left."""
        if not self._outbox.exists():
            return 0
        left = outbox.drain(self._outbox, self._send)
        self._write_notes()
        return left

    def run_id(self, stage: str | None = None) -> str | None:
        """The parent, or the run that did the work of `stage` (perhaps an earlier one); None if unknown."""
        return self.parent if stage is None else self._stages.get(stage, {}).get("run_id")

    def describe(self, text: str) -> None:
        """Set the run's description: the answer in plain words, Markdown."""
        self._do("entries", None, entries=dataclasses.asdict(Entries(tags={names.DESCRIPTION: text})))

    @property
    def link(self) -> str:
        """The parent run's page."""
        return comparison.run_link(web_address(self.store.uri), self.store.experiment_id, self.parent)

    @property
    def view_link(self) -> str:
        """The saved view with all runs side by side."""
        return comparison.view_link(web_address(self.store.uri), self.store.experiment_id)

    def compare_link(self, others: Sequence[str]) -> str:
        """This run beside the parents of other runs."""
        return comparison.compare_link(web_address(self.store.uri), self.store.experiment_id, [self.parent, *others])

    def _add(self, stage: str | None, entries: Entries) -> None:
        self._do("entries", stage, entries=dataclasses.asdict(entries))

    def _is_open(self, stage: str) -> bool:
        """Whether a child was begun below this parent and never ended."""
        known = self._stages.get(stage, {})
        return bool(known.get("open")) and known.get("parent") == self.parent

    def _summary(self, stage: str, made: Entries, own: bool, reused: bool) -> Entries:
        """What the parent gets: all but the large files, and which run did the work; of a rival only the record."""
        tags = {names.STAGES: self._said_of_stages(stage, "reused" if reused else "done")}
        if not own:
            records_only = {place: text for place, text in made.texts.items() if place.startswith("records/")}
            return Entries(tags=tags, texts=records_only, timestamp_ms=made.timestamp_ms)
        files = {path: into for path, into in made.files.items() if into.startswith("report")}
        return dataclasses.replace(made, tags={**made.tags, **tags}, files=files)

    def _said_of_stages(self, stage: str, state: str) -> str:
        """What the parent's tag says of all stages so far: one tag that a person can open, and not two a stage."""
        self._states[stage] = state
        self._write_notes()
        said = {}
        for name, each in self._states.items():
            run_id = self.run_id(name)
            said[name] = {"state": each} | ({"run_id": run_id} if run_id else {})
        return json.dumps(said, sort_keys=True)

    def _log_rivals(self, record: records.Evaluation) -> None:
        """Give each rival that was trained in this run its own row in the comparison."""
        for other in record.against:
            stage = f"{names.LABELS['Adapter']}-{other.replace('_', '-')}"
            if stage in self._stages:
                self._add(stage, rival(record, other))

    def _log_curve(self, stage: str, metrics: Path, own: bool, reused: bool) -> None:
        """The training curve: to the run that did the work, and to the parent when it is the run's own adapter."""
        stages = ([] if reused else [stage]) + ([None] if own else [])
        for target in stages:
            self._do("ship", target, path=str(metrics))

    def _target(self, stage: str | None) -> dict[str, Any]:
        """Which run an operation is for, as the outbox keeps it: the parent, or a child that may not exist yet."""
        token = self._stages[stage]["token"] if stage else None
        return {"parent": self.parent, "stage": stage, "token": token}

    def _run_of(self, target: outbox.Operation) -> str:
        """The run id of a target; a child is created when it is missing."""
        if target["stage"] is None:
            return target["parent"]
        note = self._stages.get(target["stage"], {})
        if note.get("token") == target["token"] and "run_id" in note:
            return note["run_id"]
        run_id = runs.find_or_create_child(self.store, target["parent"], target["stage"], target["token"])
        if note.get("token") == target["token"]:
            note["run_id"] = run_id
            self._write_notes()
        return run_id

    def _do(self, kind: str, stage: str | None, **details: Any) -> None:
        """Send now, or keep for later behind what already waits."""
        operation = {**self._target(stage), **details, "kind": kind}
        if self._outbox.exists() or time.monotonic() < self._silent_until or not self._send(operation):
            outbox.append(self._outbox, operation)

    def _send(self, operation: outbox.Operation) -> bool:
        """True when the operation is done with: taken, or refused for good (then it is kept in `refused.jsonl`)."""
        try:
            self._apply(operation)
        except Exception as error:
            if is_outage(error):
                self._note_outage(error)
                return False
            log.warning(
                "MLflow refused `%s` of %s: %s", operation["kind"], operation["stage"] or "the run", scrub(str(error))
            )
            outbox.append(self.folder / "refused.jsonl", {**operation, "error": scrub(str(error))})
        return True

    def _apply(self, operation: outbox.Operation) -> None:
        run_id = self._run_of(operation)
        kind = operation["kind"]
        if kind == "entries":
            runs.apply(self.store, run_id, from_plain(operation["entries"]))
        elif kind == "ship" and self._ship(run_id, Path(operation["path"])):
            raise ConnectionError("training steps could not be shipped")
        elif kind == "end":
            if operation["stage"] is None and self.degraded:
                self.store.client.set_tag(run_id, names.TRACKING_DEGRADED, "true")
            runs.finish(self.store, run_id, operation["status"], end_ms=operation["end_ms"])

    def _ship(self, run_id: str, metrics: Path) -> int:
        waiting = ship(Shipment(self.store, run_id, metrics), certain=run_id in self._certain)
        (self._certain.discard if waiting else self._certain.add)(run_id)
        if waiting:
            self._note_outage(ConnectionError(f"{waiting} training steps wait"))
        return waiting

    def _note_outage(self, error: BaseException) -> None:
        if not self.degraded:
            reason = (scrub(str(error)).splitlines() or [type(error).__name__])[0][:200]
            self.tell(
                f"MLflow at {self.store.uri} does not answer; the run goes on, what MLflow misses is sent later ({reason})"
            )
        self.degraded = True
        self._silent_until = time.monotonic() + PAUSE_S

    def _write_notes(self) -> None:
        content = {
            "uri": self.store.uri,
            "experiment_id": self.store.experiment_id,
            "parent_run_id": self.parent,
            "stages": self._stages,
            "states": self._states,
            "degraded": self.degraded,
        }
        records.write_private(self.folder / "tracking.json", json.dumps(content, indent=2, sort_keys=True) + "\n")


def _tell(line: str) -> None:
    log.warning("%s", line)
    print(line, file=sys.stderr, flush=True)


def read_notes(folder: Path) -> dict[str, Any]:
    """`tracking.json` of a run's folder: uri, experiment_id, parent_run_id, stages; empty when it was never tracked."""
    try:
        return json.loads((folder / "tracking.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
