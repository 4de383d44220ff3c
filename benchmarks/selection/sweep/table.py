"""The results: one JSON Lines file a setting, one line a finished run, appended and synced at once. Nothing is ever dropped."""

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from lora_select.records import append_line, whole_lines

STEPS = 24
"""Of a setting of the usual size."""
RESULTS = Path(__file__).parents[1] / "results"


@final
@dataclass(frozen=True)
class Setting:
    """A task at a number of rows on a model; the steps and the batch are fixed for all of its runs."""

    task: str
    model: str
    rows: int
    steps: int
    batch: int

    @property
    def name(self) -> str:
        """`<task>-<model>-<rows>`, also the name of its file."""
        return f"{self.task}-{self.model}-{self.rows}"


@final
@dataclass(frozen=True)
class Run:
    """One training: candidate, rate, seed, and the share of the setting's steps that its own schedule has."""

    candidate: str
    rate: float
    seed: int
    share: float = 1.0


@final
@dataclass(frozen=True)
class Outcome:
    """What came out. Losses are nats: `held_out` summed over each row's labels, `reference` per token of general text.

    `held_out` is empty and `reference` None when the run diverged; `train` then ends where it did. `base_reference` is the base
    model's on the general text of this run, where that was not the setting's (Debian's package lists had changed).
    """

    run: Run
    held_out: tuple[float, ...]
    reference: float | None
    train: tuple[float, ...]
    steps: int
    parameters: int
    seconds: float
    peak_gib: float
    base_reference: float | None = None

    @property
    def diverged(self) -> bool:
        """Whether there is no model to measure."""
        return not self.held_out


@final
@dataclass(frozen=True)
class Base:
    """The base model on the same rows: `labels` of each held-out row, losses as in :class:`Outcome`."""

    labels: tuple[int, ...]
    held_out: tuple[float, ...]
    reference: float
    train_tokens: int
    too_long: int
    versions: dict[str, str]
    machine: str
    rows_digest: str = ""
    """Of the token ids of all rows: training, held out, general text; empty in files older than this check."""


@final
class Table:
    """All outcomes of a setting, in memory and on disk."""

    def __init__(self, setting: Setting, folder: Path = RESULTS) -> None:
        self.setting = setting
        self.file = folder / f"{setting.name}.jsonl"
        self.base: Base | None = None
        self.outcomes: dict[Run, Outcome] = {}
        for line in map(json.loads, whole_lines(self.file)):
            if line["kind"] == "setting":
                assert Setting(**line["setting"]) == setting, f"{self.file} was made with {line['setting']}"
                self.base = Base(**{name: _plain(value) for name, value in line["base"].items()})
            else:
                values = {name: _plain(value) for name, value in line["outcome"].items()}
                outcome = self._rebased(Outcome(Run(**values.pop("run")), **values))
                self.outcomes[outcome.run] = outcome

    def _rebased(self, outcome: Outcome) -> Outcome:
        """With the reference loss that has the same rise over the setting's base model."""
        if outcome.base_reference is None or outcome.reference is None or self.base is None:
            return outcome
        return dataclasses.replace(outcome, reference=outcome.reference - outcome.base_reference + self.base.reference)

    def start(self, base: Base) -> None:
        """Write the first line."""
        self.base = base
        self._append({"kind": "setting", "setting": asdict(self.setting), "base": asdict(base)})

    def add(self, outcome: Outcome) -> None:
        """Append a finished run."""
        self.outcomes[outcome.run] = outcome
        self._append({"kind": "run", "outcome": asdict(outcome)})

    def loss(self, run: Run) -> float | None:
        """Held-out loss per label token; infinity for a diverged run, None for one that was not done."""
        outcome = self.outcomes.get(run)
        if outcome is None or self.base is None:
            return None
        return float("inf") if outcome.diverged else sum(outcome.held_out) / sum(self.base.labels)

    def rates(self, candidate: str, seed: int = 0, share: float = 1.0) -> dict[float, float]:
        """Rate -> held-out loss of what was run, rising rates."""
        runs = [r for r in self.outcomes if (r.candidate, r.seed, r.share) == (candidate, seed, share)]
        return {run.rate: self.loss(run) or 0.0 for run in sorted(runs, key=lambda run: run.rate)}

    def _append(self, line: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.file, line)


def tables(folder: Path = RESULTS) -> list[Table]:
    """All settings that have a file, by name."""
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        lines = whole_lines(file)
        if lines:
            found.append(Table(Setting(**json.loads(lines[0])["setting"]), folder))
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
