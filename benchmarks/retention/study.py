"""Every arm on every trained adapter, by the same stopping rule, judged on rows and text that chose nothing; resumable.

Results are JSON in `benchmarks/retention/results`, written after every arm; adapters and second moments stay in the work folder.
"""

import dataclasses
import gc
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, final

from benchmarks.retention import two_sided
from benchmarks.retention.kinds import KINDS, Kind, digest, kinds
from benchmarks.retention.settings import MIXTURE, SELF_ROWS, Setting, Subject, load
from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.evaluation.metrics import exact_match, generate
from lora_select.evaluation.model_losses import label_counts
from lora_select.export.updates import adapted_layers
from lora_select.records import PathPoint, write_text
from lora_select.retention import filter as filtering
from lora_select.retention import form_losses, forms, moments, path
from lora_select.retention.bench import filter_updates, scaled, spreads, until
from lora_select.retention.filter import Pair
from lora_select.retention.forms import Update
from lora_select.retention.self_text import sampled
from lora_select.spectral.linear_layers import linear_layers

RESULTS = Path(__file__).parent / "results"
OTHER = RESULTS / "other"
"""What is no setting of its own: sequences, prediction."""
ARMS_FOLDER = "arms"
"""Beside a setting's results: those of the arms in `APART`, under the same file name."""
GIVE, TASK_TOKENS, REFERENCE_TOKENS = 180, 7600, 8192
OUTPUT_TOKENS = 2048
"""Of task and of reference, for the second moments of output gradients."""


@final
@dataclass(frozen=True)
class Arm:
    """What gives the reference's second moments, how many tokens of it, and a prior c I on it as a share of its mean diagonal.

    `form`: `one-sided` as shipped; `two-sided`, outputs weighed too; `adapted`, the task's moments through the adapted model; `intruder`, PEFT's
    own remedy, which takes no moments.
    """

    sources: tuple[str, ...] = ()
    tokens: int = REFERENCE_TOKENS
    prior: float = 0.0
    form: str = "one-sided"


ARMS: Mapping[str, Arm] = {
    "filter-mixture": Arm(MIXTURE),
    "scale": Arm(),
    "filter-documentation": Arm(("documentation",)),
    "filter-self": Arm(("self",)),
    "filter-1-row": Arm(("documentation",), tokens=96),
    "filter-8-rows": Arm(MIXTURE, tokens=8 * 96),
    "filter-512-rows": Arm(MIXTURE, tokens=512 * 96),
    "filter-prior": Arm(MIXTURE, prior=0.1),
    "filter-two-sided": Arm(MIXTURE, form="two-sided"),
    "filter-adapted": Arm(MIXTURE, form="adapted"),
    "intruder": Arm(form="intruder"),
}
APART = tuple(name for name, arm in ARMS.items() if arm.form != "one-sided")
QUESTIONS = 24
GRID = (0.03, 0.1, 0.3, 1.0, 3.0)


def gave(arm: Arm, left_out: str) -> tuple[str, ...]:
    """The kinds that gave moments in a setting."""
    return tuple(name for name in arm.sources if name != left_out)


def about() -> dict[str, Any]:
    """Where and with what results were made."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"machine": platform.processor() or platform.machine(), "versions": versions}


@final
class Study:
    """One adapter on its base, and the file of its results."""

    def __init__(self, setting: Setting, work: Path) -> None:
        self.setting, self.work = setting, work
        self.file = RESULTS / f"{setting.name}.json"
        self.held: dict[str, Any] = read(self.file)
        self.subject: Subject = load(setting)
        self.pad_id = models.pad_id(self.subject.tokenizer)
        self.model = self._fresh()
        began = time.process_time()
        self.form = forms.read(work / setting.name, self.model, load_base=self._fresh)
        gc.collect()
        self.kinds: dict[str, Kind] = kinds(self.subject.tokenizer, GIVE)
        if not self.held:
            training = json.loads((work / setting.name / "training.json").read_text())
            self.held = {
                "setting": dataclasses.asdict(setting),
                "form": self.form.kind,
                "training_processor_seconds": training["processor_seconds"],
                "read_processor_seconds": round(time.process_time() - began, 1),
                "digests": {name: digest(kind.judge) for name, kind in self.kinds.items()},
                "arms": {},
            }
            self.held |= about()
            half = work / setting.name / "targets.json"
            self.held |= {"targets": json.loads(half.read_text(encoding="utf-8"))} if half.is_file() else {}

    def _fresh(self) -> Any:
        return models.load_model(self.subject.source.path)

    def run(self, arms: Sequence[str], late: Callable[[], bool]) -> None:
        """Those of `arms` that are missing, until `late` says so."""
        for arm in arms:
            if arm in self.held["arms"] or late():
                continue
            if arm == "base":
                self.held["arms"][arm] = self._base()
            elif arm == "raw":
                self.held["arms"][arm] = self._judged(self.form.updates)
                self._answers(arm, self.form.updates)
            elif ARMS[arm].form == "intruder":
                self.held["arms"][arm] = self._intruder()
            else:
                self.held["arms"][arm] = self._arm(arm, ARMS[arm])
            self._write()

    def _base(self) -> dict[str, Any]:
        """The base model's losses, each set of rows measured once for all settings of a model."""
        file = self.work / f"base-{self.setting.model}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        judging = self._judging()
        missing = {name: rows for name, rows in judging.items() if digest(rows) not in known}
        measured = self._losses({}, missing)
        known |= {digest(rows): measured[name] for name, rows in missing.items()}
        write_text(file, json.dumps(known))
        return self._summed({name: known[digest(rows)] for name, rows in judging.items()})

    def _arm(self, arm: str, given: Arm) -> dict[str, Any]:
        began = time.process_time()
        if "selection" not in self.held:
            self.held["selection"] = form_losses.losses(
                self.model, self.form.updates, self.subject.selection, self.pad_id
            )
        rows = self.subject.selection
        start = path.Losses(tuple(self.held["selection"]), label_counts(rows))
        scales = self.held["arms"].get("scale", {}).get("path", ())
        shortened = path.shortened([PathPoint(**point) for point in scales])
        pairs, layers, kappa, costs = self._pairs(given)
        made: dict[str, Any] = {"kappa": kappa, "moments_processor_seconds": costs}
        if given.sources:
            made["shortened"] = shortened

        at = self._updates_at(given, shortened, pairs, layers, costs)
        tried: dict[float, list[float]] = {}

        def losses(strength: float) -> Sequence[float]:
            found = form_losses.losses(self.model, at(strength), rows, self.pad_id)
            tried[strength] = [round(loss, 4) for loss in found]
            return found

        searched = time.process_time()
        points = path.morozov(start, losses, path.parse_tolerance(None))
        made["search_processor_seconds"] = round(time.process_time() - searched, 1)
        made["path"] = [dataclasses.asdict(point) for point in points]
        made["tried"] = [{"strength": strength, "losses": found} for strength, found in tried.items()]
        best = path.chosen(points)
        made["strength"] = None if best is None else best.strength
        if best is not None:
            made |= self._written(at(best.strength))
            if arm == "filter-mixture":
                self._answers(arm, at(best.strength))
        print(f"{self.setting.name} {arm}: {made['strength']}, {time.process_time() - began:.0f} s", flush=True)
        return made

    def _updates_at(
        self,
        given: Arm,
        shortened: float,
        pairs: Mapping[str, Pair],
        layers: Mapping[str, list[str]],
        costs: dict[str, float],
    ) -> Callable[[float], Mapping[str, Update]]:
        """Strength -> updates."""
        shorter = scaled(self.form.updates, shortened)
        if not given.sources:
            return lambda strength: scaled(self.form.updates, strength)
        if given.form != "two-sided":
            return lambda strength: filter_updates(shorter, pairs, layers, strength)
        began = time.process_time()
        names = [name for owned in layers.values() for name in owned]
        each = OUTPUT_TOKENS // len(given.sources)
        reference = [row for name in gave(given, self.setting.left_out) for row in until(self._giving(name), each)]
        task = until(self.subject.train, OUTPUT_TOKENS)
        outputs = (
            two_sided.output_moments(self.model, self.form.updates, names, task, self.pad_id),
            two_sided.output_moments(self.model, {}, names, reference, self.pad_id),
        )
        costs["outputs"] = round(time.process_time() - began, 1)
        began = time.process_time()
        made = two_sided.TwoSided(shorter, pairs, layers, outputs)
        costs |= {"bases": round(time.process_time() - began, 1), "unit": made.unit}
        return made.at

    def _intruder(self) -> dict[str, Any]:
        """PEFT's `reduce_intruder_dimension` at its defaults: no search, no rows."""
        from peft.tuners.lora.intruders import reduce_intruder_dimension

        began = time.process_time()
        network = models.with_adapter(self._fresh(), self.work / self.setting.name)
        told: list[str] = []
        reduce_intruder_dimension(network, logging_sink=told.append)
        found = {}
        for name, layer in adapted_layers(network):
            a, b = (side["intruder_reduced"].weight.detach() for side in (layer.lora_A, layer.lora_B))
            found[name] = Update(a.float(), b.float() * layer.scaling["intruder_reduced"])
        intruders = [int(line.rpartition(" ")[2]) for line in told if "Intruders: " in line]
        seconds = round(time.process_time() - began, 1)
        made = {"intruders": sum(intruders), "layers": len(intruders), "processor_seconds": seconds}
        return made | self._judged(found)

    def _written(self, updates: Mapping[str, Update]) -> dict[str, Any]:
        """What can be saved of these updates, judged."""
        try:
            kept, written = forms.loadable(self.form, updates)
        except Exception as error:
            return {"refused": str(error)}
        return {"rank": written.rank, "error": written.error, "method": written.method} | self._judged(kept)

    def frontier(self, arm: str) -> None:
        """Task and reference losses of an arm at fixed strengths."""
        held = self.held["arms"][arm]
        if "frontier" in held:
            return
        pairs, layers, _, _ = self._pairs(ARMS[arm])
        held["frontier"] = [
            self._point(
                filter_updates(self.form.updates, pairs, layers, s) if pairs else scaled(self.form.updates, s), s
            )
            for s in GRID
        ]
        self._write()

    def _point(self, updates: Mapping[str, Update], strength: float) -> dict[str, Any]:
        rows = {"task": self.subject.evaluation} | {name: self.kinds[name].judge for name in ("documentation", "chat")}
        losses = {name: form_losses.losses(self.model, updates, part, self.pad_id) for name, part in rows.items()}
        return {"strength": strength} | {
            name: path.Losses(found, label_counts(rows[name])).mean for name, found in losses.items()
        }

    def _judging(self) -> dict[str, Sequence[TokenRow]]:
        pieces: dict[str, Sequence[TokenRow]] = {name: self.kinds[name].judge[: self.setting.judge] for name in KINDS}
        return {"task": self.subject.evaluation, **pieces}

    def _losses(self, updates: Mapping[str, Update], rows: Mapping[str, Sequence[TokenRow]]) -> dict[str, list[float]]:
        return {
            name: [round(loss, 4) for loss in form_losses.losses(self.model, updates, part, self.pad_id)]
            for name, part in rows.items()
        }

    def _judged(self, updates: Mapping[str, Update]) -> dict[str, Any]:
        """Summed losses of every row that judges."""
        return self._summed(self._losses(updates, self._judging()))

    def _summed(self, losses: dict[str, list[float]]) -> dict[str, Any]:
        labels = {name: label_counts(part) for name, part in self._judging().items()}
        self.held.setdefault("labels", labels)
        means = {name: round(path.Losses(tuple(losses[name]), labels[name]).mean, 5) for name in losses}
        return {"means": means, "losses": losses}

    def _pairs(self, arm: Arm) -> tuple[dict[str, Pair], dict[str, list[str]], float | None, dict[str, float]]:
        if not arm.sources:
            return {}, {}, None, {}
        costs: dict[str, float] = {}
        modules = linear_layers(self.model)

        def sums(name: str, rows: Sequence[TokenRow]) -> moments.Moments:
            """Of all linear layers through the base model: the same for all adapters, so kept."""
            file = self.work / f"moments-{self.setting.model}-{digest(rows)}.safetensors"
            if file.is_file():
                return moments.load(file)
            began = time.process_time()
            made = moments.stream(self.model, modules, rows, self.pad_id)
            costs[name] = round(time.process_time() - began, 1)
            moments.save(made, file)
            return made

        rows = until(self.subject.train, TASK_TOKENS)
        if arm.form == "adapted":
            began = time.process_time()
            with forms.applied(self.model, self.form.updates):
                task = moments.stream(self.model, modules, rows, self.pad_id)
            costs["task"] = round(time.process_time() - began, 1)
        else:
            task = sums("task", rows)
        each = arm.tokens // len(arm.sources)
        given = [sums(name, until(self._giving(name), each)) for name in gave(arm, self.setting.left_out)]
        began = time.process_time()
        pairs, _, left = filtering.pairs(task, given, prior=arm.prior)
        if left:
            print(
                f"{len(left)} of {len(pairs) + len(left)} inputs are left alone: {next(iter(left.values()))}",
                flush=True,
            )
        layers: dict[str, list[str]] = {}
        for name, owner in task.owner.items():
            if name in self.form.updates and owner in pairs:
                layers.setdefault(owner, []).append(name)
        del task, given
        kappa = filtering.joined(spreads(pairs, layers, self.form.updates)).kappa
        costs["kappa"] = round(time.process_time() - began, 1)
        return pairs, layers, round(kappa, 4), costs

    def _giving(self, name: str) -> Sequence[TokenRow]:
        if name != "self":
            return self.kinds[name].give
        return sampled(
            self.subject.source,
            self.subject.tokenizer,
            SELF_ROWS,
            seed=0,
            model=lambda: self.model,
            cache=models.cache_folder(),
        )

    def _answers(self, arm: str, updates: Mapping[str, Update]) -> None:
        """Generated answers of an arm on rows that chose nothing: whether each is exact; nothing where the task is plain text."""
        if not self.subject.questions:
            return
        asked = self.subject.questions[:QUESTIONS]
        with forms.applied(self.model, updates):
            given = generate(
                self.model, self.subject.tokenizer, [prompt for prompt, _ in asked], max_new_tokens=48, batch_size=8
            )
        matches = [exact_match(expected, answer) for (_, expected), answer in zip(asked, given, strict=True)]
        self.held.setdefault("answers", {})[arm] = {"exact": matches, "answers": given}

    def _write(self) -> None:
        arms: Mapping[str, Any] = self.held["arms"]
        own = set(ARMS) - set(APART) | {"base", "raw"}
        apart = {name: held for name, held in arms.items() if name not in own}
        main = self.held | {"arms": {name: held for name, held in arms.items() if name not in apart}}
        RESULTS.mkdir(exist_ok=True)
        write_text(self.file, json.dumps(main, indent=None, sort_keys=True) + "\n")
        if apart:
            file = RESULTS / ARMS_FOLDER / self.file.name
            file.parent.mkdir(exist_ok=True)
            known = json.loads(file.read_text(encoding="utf-8"))["arms"] if file.is_file() else {}
            write_text(file, json.dumps(about() | {"arms": known | apart}, indent=None, sort_keys=True) + "\n")


def read(file: Path) -> dict[str, Any]:
    """A setting's results with the arms that are kept apart; empty where there are none."""
    held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    apart = file.parent / ARMS_FOLDER / file.name
    if held and apart.is_file():
        held["arms"] |= json.loads(apart.read_text(encoding="utf-8"))["arms"]
    return held
