"""Running: one base model in memory, every candidate on it in turn, by the product's own training code."""

import contextlib
import math
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, final

from benchmarks import plans
from benchmarks.selection.sweep import tasks
from benchmarks.selection.sweep.candidates import adapter, candidate
from benchmarks.selection.sweep.subject import check_rows, load, rows_digest
from benchmarks.selection.sweep.table import Base, Outcome, Run, Setting, Table
from lora_select import records
from lora_select.data.labels.tokens import label_loss
from lora_select.data.microbatches import draw
from lora_select.evaluation.model_losses import row_losses
from lora_select.initialization import write_initialization
from lora_select.records import Spectra, TrainingPlan
from lora_select.spectral.measuring_pass import analyze
from lora_select.training import trials
from lora_select.training.worker.loop import peak_memory_gib
from lora_select.variants import CATALOGUE

EVAL_BATCH = 16
MICRO_ROWS = 8


@final
class Bench:
    """A setting that is ready to run."""

    def __init__(self, setting: Setting, work: Path) -> None:
        self.setting = setting
        self.table = Table(setting)
        self.work = work / setting.name
        self.work.mkdir(parents=True, exist_ok=True)
        self.subject = load(setting.model, tasks.find(setting.task), setting.rows)
        self.base_reference: float | None = None
        if self.table.base is None:
            self.table.start(self._base())
        else:
            self.base_reference = check_rows(self.table.base, self.subject, setting.name, self._base)
        self.spectra = self._spectra()

    def run(self, run: Run) -> Outcome:
        """Train, measure, write down."""
        variant, targets, size = _parts(run.candidate)
        made = candidate(variant, targets, size, self.spectra.layers)
        assert made is not None, f"{run.candidate} has no targets on {self.setting.model}"
        spec = adapter(made, run.rate)
        plan = self.plan(run)
        factors = self.work / f"{run.candidate}.safetensors"
        start = write_initialization(spec, Path(self.subject.source.path), self.work / "spectra.safetensors", factors)
        _reset_peak()
        began = time.perf_counter()
        with trials.adapted(self.subject.model, spec, plan, str(start) if start else None) as network:
            losses = trials.train(network, spec, plan, self.subject.rows.train, self.subject.pad_id)
            seconds, peak = time.perf_counter() - began, peak_memory_gib("cpu")
            held_out, reference = self._measure(network.eval()) if len(losses) == plan.total_steps else ((), None)
        outcome = Outcome(
            run=run,
            held_out=held_out,
            reference=reference,
            train=tuple(round(loss, 5) for loss in losses if math.isfinite(loss)),
            steps=plan.total_steps,
            parameters=made.num_parameters,
            seconds=round(seconds, 2),
            peak_gib=round(peak, 3),
            base_reference=self.base_reference,
        )
        factors.unlink(missing_ok=True)
        self.table.add(outcome)
        return outcome

    def plan(self, run: Run) -> TrainingPlan:
        """One process, fp32; the schedule spans this run's own steps."""
        steps = max(2, round(self.setting.steps * run.share))
        told = self.setting
        return plans.alone(
            rate=run.rate, seed=run.seed, steps=steps, epochs=told.steps * told.batch / told.rows, batch=told.batch, micro=MICRO_ROWS,
            packing=self.subject.packing,
        )  # fmt: skip

    def _measure(self, network: Any) -> tuple[tuple[float, ...], float | None]:
        """Held-out losses by row and the reference loss per token; nothing when a loss is not finite."""
        try:
            held_out = row_losses(network, self.subject.rows.held_out, self.subject.pad_id, EVAL_BATCH, "cpu")
            reference = row_losses(network, self.subject.reference, self.subject.pad_id, EVAL_BATCH, "cpu")
        except RuntimeError:
            return (), None
        labels = sum(sum(row.label_mask) for row in self.subject.reference)
        return tuple(round(loss, 5) for loss in held_out), round(sum(reference) / labels, 6)

    def _base(self) -> Base:
        held_out, reference = self._measure(self.subject.model)
        assert reference is not None, "the base model's own loss is not finite"
        return Base(
            labels=tuple(sum(row.label_mask) for row in self.subject.rows.held_out),
            held_out=held_out,
            reference=reference,
            train_tokens=sum(len(row.input_ids) for row in self.subject.rows.train),
            too_long=self.subject.rows.too_long,
            versions={name: metadata.version(name) for name in ("torch", "transformers", "peft")},
            machine=_cpu(),
            rows_digest=rows_digest(self.subject),
        )

    def _spectra(self) -> Spectra:
        """The spectral pass over the training rows, made once."""
        file = self.work / "spectra.json"
        if file.is_file():
            return records.read(Spectra, file)
        batches = draw(
            self.subject.rows.train,
            microbatches=32,
            size=max(1, self.setting.rows // 32),
            seed=0,
            pad_id=self.subject.pad_id,
        )
        made = analyze(
            self.subject.model,
            batches,
            loss_fn=label_loss,
            variants=CATALOGUE,
            sketch_size=32,
            seed=0,
            folder=self.work,
            dataset_digest=self.setting.name,
            model_digest=self.subject.source.digest,
        )
        records.write(file, made)
        return made


def _parts(key: str) -> tuple[str, str, int]:
    """`lora-all-linear-r16` -> (lora, all-linear, 16); a size without rank gives 0."""
    variant, *targets, size = key.split("-")
    return variant, "-".join(targets), int(size[1:]) if size.startswith("r") and size[1:].isdigit() else 0


def _reset_peak() -> None:
    """Let VmHWM start anew (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
