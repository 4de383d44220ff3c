"""What the line ends with, as objects that a notebook can print: a measurement, a choice, a finished run."""

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select import models, recipes, records, serving
from lora_select.data.intake import read_canonical
from lora_select.data.labels.tokens import TokenRow, read_rows
from lora_select.errors import InputError
from lora_select.evaluation.few_shot import ask_once
from lora_select.pipeline.history import read_run, replay
from lora_select.pipeline.outcomes import Chosen, Measured, Recommended
from lora_select.pipeline.run import Run
from lora_select.recipes import Emitted
from lora_select.recipes.afterwards import settings_after
from lora_select.recipes.recipe import Order, common_arguments, is_hub_id
from lora_select.recipes.rows import Rows, read, with_tokens
from lora_select.records import (
    Adapter,
    AdapterCosts,
    AdapterSpec,
    Decision,
    Evaluation,
    FewShot,
    Promotion,
    Race,
    Spectra,
    TrainingPlan,
)
from lora_select.report.frames import candidates, frame, layer_row, paragraphs, table
from lora_select.report.verdict import before_training, verdict
from lora_select.selection.explanation import answer, explain
from lora_select.training import validation

if TYPE_CHECKING:
    import pandas
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

RECORDS = ("dataset", "profile", "few_shot", "spectra", "race", "decision")
"""What a folder of files keeps of the run, so that `explain` and `replay` read it."""


@final
@dataclass(frozen=True)
class Measurement:
    """What `analyze` measured: one record a layer in `spectra.layers`. `costs` is None unless it was asked for."""

    run: Run
    measured: Measured
    costs: AdapterCosts | None = None

    @property
    def spectra(self) -> Spectra:
        """The record of the spectral pass."""
        return self.measured.spectra.record

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.run.folder

    def to_frame(self) -> "pandas.DataFrame":
        """One row a layer: shape, signal energy with its standard error, noise, signal rank, stable rank of W.

        Raises:
            InputError: pandas is missing.
        """
        return frame([layer_row(layer) for layer in self.spectra.layers])

    def __repr__(self) -> str:
        """What was measured, in a few lines."""
        from lora_select.report.layers import summary

        return "\n".join(summary(self.spectra))

    def _repr_html_(self) -> str:
        return table([layer_row(layer) for layer in self.spectra.layers]) + paragraphs(repr(self))


@final
@dataclass(frozen=True)
class Choice:
    """What `recommend` chose: `decision` with its evidence, and `plan`, the training as one process of another trainer would do it."""

    run: Run
    recommended: Recommended

    @property
    def _chosen(self) -> Chosen:
        return self.recommended.chosen

    @property
    def decision(self) -> Decision:
        """The choice, its evidence and every alternative."""
        return self._chosen.decision.record

    @property
    def race(self) -> Race | None:
        """The trials that the decision rests on; None where none ran."""
        return self._chosen.race.record if self._chosen.race is not None else None

    @property
    def few_shot(self) -> FewShot | None:
        """What the untrained model reaches with examples in its prompt; None where `evaluation.few_shot` asked for none."""
        return self._chosen.few_shot.record if self._chosen.few_shot is not None else None

    @functools.cached_property
    def could_be_shown(self) -> bool:
        """Whether examples can stand in the prompt: every held-out row is one question and one answer."""
        dataset = self._chosen.measured.dataset
        return ask_once(row for _, row in read_canonical(dataset.folder / dataset.record.eval_file.path))

    @property
    def plan(self) -> TrainingPlan:
        """Steps, batch, schedule, and an estimate of time and memory."""
        return self.recommended.plan.record

    @property
    def spec(self) -> AdapterSpec:
        """Everything that names the adapter."""
        return self.decision.choice

    @property
    def variant(self) -> str:
        """The variant's name."""
        return self.spec.variant

    @property
    def targets(self) -> str:
        """Which layers: `all-linear` or `mlp-only`."""
        return self.spec.targets

    @property
    def r(self) -> int:
        """Its rank; 0 where it has none."""
        return self.spec.r

    @property
    def learning_rate(self) -> float:
        """The largest learning rate of the schedule."""
        return self.spec.learning_rate

    @property
    def folder(self) -> Path:
        """The run's folder; `finetune` with the same settings goes on there."""
        return self.run.folder

    def peft_config(self) -> "PeftConfig":
        """The adapter as PEFT's own config class. A start that PEFT lacks is not in it: :meth:`apply` makes every start."""
        import peft

        from lora_select.recipes.initial_adapter import named_init
        from lora_select.training.worker.optimizer import scheduled

        told = scheduled(named_init(self.spec).peft_arguments, self.plan)
        with models.quiet_peft():
            return getattr(peft, self.spec.peft_class)(**told, base_model_name_or_path=self.run.base.path)

    def apply(self, model: "PreTrainedModel | None" = None) -> "PeftModel":
        """The PEFT model at its start, ready for any training loop.

        Args:
            model: the base model, as it was loaded from the folder that was measured; PEFT changes it in place. By default the
                base is loaded here, in the plan's precision and on its device.
        """
        import tempfile

        import torch

        from lora_select.initialization import write_initialization
        from lora_select.training.worker.model import adapt, load_base

        base, quantize = self.run.base, self.run.config.base_model.quantize
        spectra = self._chosen.measured.spectra
        with tempfile.TemporaryDirectory() as temporary, torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            torch.manual_seed(self.plan.seed)
            tensors = spectra.folder / spectra.record.tensors.path
            factors = write_initialization(self.spec, Path(base.path), tensors, Path(temporary) / "start", quantize)
            initial = str(factors) if factors else None
            if model is None:
                with torch.random.fork_rng(devices=[]):
                    model = load_base(base.path, self.plan, self.plan.device, quantize, initial)
            return adapt(model, self.spec, self.plan, base.path, initial)

    def training_arguments(self) -> dict[str, Any]:
        """Keywords for `transformers.TrainingArguments` and `trl.SFTConfig`: learning rate, batch, schedule, steps, precision, seed."""
        return common_arguments(self.spec, self.plan)

    def write(self, out: str | Path, trainers: Sequence[str] | None = None) -> tuple[Emitted, ...]:
        """One folder a trainer in `out`, and the records that the choice rests on.

        Args:
            out: a folder; files of an earlier call are replaced, never what was trained there.
            trainers: names in `lora_select.recipes.TOOLS`; by default those of `recipes.trainers`.

        Raises:
            InputError: a trainer is unknown, or cannot express the adapter or the rows.
        """
        names = tuple(dict.fromkeys(self.run.config.recipes.trainers if trainers is None else trainers))
        recipes.check_names(names)
        config, measured = self.run.config, self._chosen.measured
        recipe = Order(
            spec=self.spec,
            base=self.run.base,
            plan=self.plan,
            rows=self._rows,
            quantize=config.base_model.quantize,
            serve=config.selection.serve,
            max_length=config.dataset.max_length,
            start=None,
            retention=settings_after(
                config.retention.model_dump(), self.plan, self._parts[0], config.base_model.quantize
            ),
        )
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        self._copy_records(folder)
        return recipes.emit(recipe, names, measured.spectra.folder / measured.spectra.record.tensors.path, folder)

    @functools.cached_property
    def _rows(self) -> Rows:
        dataset = self._chosen.measured.dataset
        kept = frozenset(row.row_id for row in self._parts[1])
        rows, plan = read(dataset.record, dataset.folder, self.run.base, kept), self.recommended.plan
        text = read_rows(plan.folder / plan.record.replay.tokens_file.path) if plan.record.replay else []
        return with_tokens(rows, text, models.load_tokenizer(self.run.base.path))

    @functools.cached_property
    def _parts(self) -> tuple[list[TokenRow], list[TokenRow]]:
        """The measured training rows: trained on, and kept for validation."""
        profile = self._chosen.measured.profile
        rows = read_rows(profile.folder / profile.record.train_tokens_file.path)
        return validation.split(rows, self.plan.validation_rows, self.plan.seed)

    @property
    def is_measured_here(self) -> bool:
        """Whether the plan's speed was measured on this machine."""
        return any(reason.startswith("measured here") for reason in self.plan.reasons)

    def _served_as_it_is(self) -> tuple[str, ...]:
        """What engines would make of the trained folder, where it will not be in the form that all of them read alike."""
        return serving.warnings_before(self.peft_config().to_dict(), self.decision.inputs.serve)

    def notes(self, written: Sequence[Emitted], out: Path) -> tuple[str, ...]:
        """What a person should know of written files: other tokens, places on this machine, files of an earlier call."""
        found = []
        rows = self._rows
        if rows.other_tokens:
            found.append(
                f"{rows.other_tokens} of {len(rows.train) + len(rows.eval)} rows have a token that spans the seam of prompt and answer, "
                "or end within a word; tools see other tokens there than were measured"
            )
        if not is_hub_id(self.run.base):
            found.append(
                f"the files name the model by its place on this machine, {self.run.base.path}; change that line where you train"
            )
        names = [one.tool for one in written]
        found += [f"the trained folder as it is: {line.rstrip('.')}" for line in self._served_as_it_is()]
        older = [name for name in recipes.TOOLS if name not in names and (out / name).is_dir()]
        if older:
            found.append(f"{', '.join(older)} in {out} are of an earlier call and may follow another decision")
        return tuple(found)

    def _copy_records(self, folder: Path) -> None:
        for name in RECORDS:
            source = self.folder / f"{name}.json"
            if source.is_file() and (name != "race" or self._chosen.race is not None):
                records.write_text(folder / f"{name}.json", source.read_text(encoding="utf-8"))
            else:
                (folder / f"{name}.json").unlink(missing_ok=True)
        records.write(folder / "plan.json", self.plan)

    def to_frame(self) -> "pandas.DataFrame":
        """One row a candidate: parameters, learning rate, score with its standard error, and why it was not taken.

        Raises:
            InputError: pandas is missing.
        """
        return frame(candidates(self.decision))

    def __repr__(self) -> str:
        """What examples in the prompt reach, where that was measured; the answer in plain sentences, then the evidence."""
        return "\n".join([*self._before, explain(self.decision)])

    def _repr_html_(self) -> str:
        return paragraphs("\n".join([*self._before, *answer(self.decision)])) + table(candidates(self.decision))

    @property
    def _before(self) -> tuple[str, ...]:
        return before_training(self.few_shot) if self.few_shot else ()


@final
class FinetunedRun:
    """A finished run in its folder; records are read when they are asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).resolve()

    @functools.cached_property
    def decision(self) -> Decision:
        """The choice, its evidence and every alternative."""
        return read_run(self.folder).decision

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """Base and adapter on held-out rows, with intervals; other adapters beside it."""
        return self._read("evaluation", Evaluation)

    @functools.cached_property
    def few_shot(self) -> FewShot | None:
        """What the untrained model reached with examples in its prompt; None where that was not asked for."""
        return self._read("few_shot", FewShot) if (self.folder / "few_shot.json").is_file() else None

    @functools.cached_property
    def adapter(self) -> Adapter:
        """Steps, tokens, loss and digest of the trained adapter."""
        return self._read("adapter", Adapter)

    @functools.cached_property
    def plan(self) -> TrainingPlan:
        """How it was trained."""
        return self._read("plan", TrainingPlan)

    @functools.cached_property
    def promotion(self) -> Promotion | None:
        """What the registry was told; None where there was none."""
        return self._read("promotion", Promotion) if (self.folder / "promotion.json").is_file() else None

    @property
    def adapter_folder(self) -> Path:
        """A PEFT folder that `PeftModel.from_pretrained(base, folder)` loads."""
        return (self.folder / "adapter").resolve()

    @property
    def report(self) -> Path:
        """The page to open."""
        return self.folder / "report.html"

    def replay(self) -> list[str]:
        """Recompute the decision from its recorded evidence; what differs, line by line, empty when nothing does."""
        return replay(self.folder)

    def to_frame(self) -> "pandas.DataFrame":
        """One row a metric: base, adapted, difference, its 95 % interval, rows.

        Raises:
            InputError: pandas is missing.
        """
        return frame(self._metrics())

    def __repr__(self) -> str:
        """The verdict, then what was chosen and where things are."""
        if not (self.folder / "evaluation.json").is_file():
            before = before_training(self.few_shot) if self.few_shot else ()
            return "\n".join([*before, *answer(self.decision), f"Nothing was trained yet in {self.folder}."])
        lines = [verdict(self.decision, self.evaluation, self.promotion, self.adapter), *answer(self.decision)]
        return "\n".join([*lines, f"adapter  {self.adapter_folder}", f"report   {self.report}"])

    def _repr_html_(self) -> str:
        return paragraphs(repr(self)) + table(self._metrics())

    def _metrics(self) -> list[dict[str, Any]]:
        found = {**self.evaluation.metrics, "forgetting": self.evaluation.forgetting}
        return [
            {
                "metric": name,
                "base": item.base,
                "adapted": item.adapted,
                "difference": item.difference,
                "low": item.interval[0],
                "high": item.interval[1],
                "rows": item.rows,
                "unit": item.unit,
            }
            for name, item in found.items()
        ]

    def _read(self, name: str, kind: Any) -> Any:
        file = self.folder / f"{name}.json"
        if not file.is_file():
            raise InputError(
                f"{self.folder} holds no {name}.json: the run did not get that far, `finetune` goes on there"
            )
        try:
            return records.read(kind, file)
        except ValueError as error:
            raise InputError(str(error)) from error
