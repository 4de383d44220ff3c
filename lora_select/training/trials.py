"""The short trainings of a race, in one process: one adapter after another on one loaded base; a kill loses the trial that ran, and no more.

Model, batches, loss, optimizer and schedule are those of the ranks; DeepSpeed and checkpoints are left out.
"""

import contextlib
import dataclasses
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.initialization import changes_base, write_initialization
from lora_select.initialization.portable import subtracts
from lora_select.records import AdapterSpec, Race, TrainingPlan, Trial, append_line, from_json, whole_lines
from lora_select.selection.race import Entrant, RacePlan, dropped, probe_name
from lora_select.training.worker import batches, loss, model, optimizer, packing, rehearsal, sanity
from lora_select.training.worker.batches import trained_tokens
from lora_select.training.worker.loop import learning_rate
from lora_select.training.worker.process import seed_micro_batch, seed_start

PROBES = "probes.jsonl"
HELD_OUT_SHARE, MOST_HELD_OUT, LEAST_HELD_OUT = 0.2, 64, 8
EVAL_BATCH = 16
REFERENCE_TOKENS = 1024


@contextlib.contextmanager
def adapted(base: Any, spec: AdapterSpec, plan: TrainingPlan, initial_factors: str | None = None) -> Iterator[Any]:
    """The adapter on a loaded base, ready to train; afterwards the base is, bit for bit, what it was.

    A start that takes B A out of the base changes its weights; they are kept beside the model meanwhile.

    Args:
        base: the loaded base model; no other adapter may be on it.
        spec: the adapter.
        plan: seed, packing.
        initial_factors: the file of a start that is not PEFT's own.
    """
    kept = _weights(base, spec) if subtracts(initial_factors) else {}
    seed_start(plan.seed)
    network = model.adapt(base, spec, plan, base.name_or_path, initial_factors).train()
    if plan.packing:
        packing.refusal(network, rehearsal.vocabulary(network))  # turns it on where the model takes it
    labelled = loss.enable(network)
    try:
        yield network
    finally:
        head = base.get_output_embeddings()
        network.unload()
        if labelled:
            loss.disable(head)
        packing.disable(base)
        _put_back(base, kept)
        base.eval().requires_grad_(False)


def train(
    network: Any,
    spec: AdapterSpec,
    plan: TrainingPlan,
    rows: Sequence[TokenRow],
    pad_id: int,
    report: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Do the plan's steps; returns the mean loss per label token of each, nats.

    Ends early when a loss is not finite or the run diverges: the list is then shorter than the plan, and its last entry is
    what was seen.

    Args:
        network: from :func:`adapted`.
        spec: names the optimizer.
        plan: of one process; rows are packed where the model was found to take it.
        rows: training rows.
        pad_id: of the tokenizer.
        report: called with the steps done.
    """
    import torch

    plan = dataclasses.replace(plan, packing=packing.enabled(network))
    made = optimizer.make_optimizer(network, spec, plan)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    device = str(trained[0].device)
    losses: list[float] = []
    for step in range(plan.total_steps):
        numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
        chosen = [rows[number] for number in numbers]
        labels = sum(sum(row.label_mask) for row in chosen)
        optimizer.set_rate(made, learning_rate(plan, step))
        total = 0.0
        for slot, part in enumerate(part for part in batches.dealt(chosen, plan)[0] if part):
            seed_micro_batch(plan.seed, step, slot)
            nll = loss.training_loss(network, rehearsal.batch_of(part, plan, pad_id, device))
            (nll / labels).backward()
            total += float(nll.detach()) / labels
        norm = float(torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm))
        losses.append(total)
        if not (math.isfinite(total) and math.isfinite(norm)) or sanity.diverging(losses):
            break
        made.step()
        made.zero_grad()
        report(step + 1)
    return losses


@final
@dataclass(frozen=True)
class Material:
    """What a race trains and measures on. `tensors` is `spectra.safetensors`, from which starts are made."""

    base_path: str
    tensors: Path
    rows: Sequence[TokenRow]
    quantized_base: str | None
    seed: int


def split(rows: Sequence[TokenRow], seed: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Training rows of the probes, and rows they are compared on: a fifth, at most 64.

    Raises:
        InputError: fewer than 8 would be held out.
    """
    shuffled = list(rows)
    random.Random(f"race:{seed}").shuffle(shuffled)
    count = min(MOST_HELD_OUT, int(HELD_OUT_SHARE * len(shuffled)))
    if count < LEAST_HELD_OUT:
        raise InputError(
            f"a race holds a fifth of the training rows out and needs {LEAST_HELD_OUT} of them; {len(rows)} rows are too few: bring "
            "more, or set `selection.race_budget` to 0"
        )
    return shuffled[count:], shuffled[:count]


def run(
    plan: RacePlan,
    training: TrainingPlan,
    material: Material,
    *,
    folder: Path,
    digests: tuple[str, str],
    budget: float,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Race:
    """Run what is not in `folder/probes.jsonl` yet; rung by rung, dropping what is clearly worse in between.

    Args:
        plan: who races.
        training: the full training on one process; probes take its batch, precision and schedule.
        material: rows, base and starts.
        folder: existing; gets `probes.jsonl`.
        digests: of profile and spectra.
        budget: recorded.
        progress: called with (probes done, probes in all, what).

    Raises:
        InputError: too few rows.
    """
    began = time.monotonic()
    whole = any(changes_base(entrant.spec.init) for entrant in plan.entrants)
    track = _Track(training, material, folder, whole=whole)
    finished: list[Trial] = []
    out: dict[str, str] = {}
    total = sum(len(entrant.rates) for entrant in plan.entrants) * len(plan.rungs)
    for steps in plan.rungs:
        rung: list[Trial] = []
        for entrant, rate in _pairs(plan):
            name = probe_name(entrant.key, rate)
            if name in out:
                continue
            progress(len(finished), total, f"{entrant.key} at learning rate {rate:g}, {steps} steps")
            try:
                probe = track.probe(entrant.key, dataclasses.replace(entrant.spec, learning_rate=rate), steps)
            except InputError as error:  # its start cannot be made here: the others race on
                out[name] = str(error)
                continue
            rung.append(probe)
            finished.append(probe)
        out |= dropped(rung, track.labels)
    progress(total, total, "done")
    tokens = sum(probe.tokens for probe in finished)
    full = trained_tokens(training, material.rows, training.total_steps)
    return Race(
        profile_digest=digests[0],
        spectra_digest=digests[1],
        budget=budget,
        planned_steps=training.total_steps,
        rungs=plan.rungs,
        labels=track.labels,
        base_held_out=track.base_held_out,
        base_reference=track.base_reference,
        probes=tuple(finished),
        dropped=out,
        cost=round(tokens / full, 4),
        seconds=round(time.monotonic() - began, 2),
        notes=plan.notes,
    )


def _pairs(plan: RacePlan) -> Iterator[tuple[Entrant, float]]:
    """Every entrant at every rate."""
    for entrant in plan.entrants:
        for rate in entrant.rates:
            yield entrant, rate


@final
class _Track:
    """The loaded base, the rows, and the probes that are on disk."""

    def __init__(self, training: TrainingPlan, material: Material, folder: Path, *, whole: bool) -> None:
        """`whole`: a start takes something off the base, which bf16 would round."""
        from lora_select.data.general_text import reference_rows

        self.training, self.material, self.folder = training, material, folder
        tokenizer = models.load_tokenizer(material.base_path)
        self.pad_id = models.pad_id(tokenizer)
        self.train, self.held_out = split(material.rows, material.seed)
        self.labels = tuple(sum(row.label_mask) for row in self.held_out)
        self.reference = reference_rows(tokenizer, REFERENCE_TOKENS)
        self.done = _read(folder / PROBES)
        dtype = "bfloat16" if training.precision == "bf16" and not whole else "float32"
        self.device = training.device
        self.base: Any = models.load_model(
            material.base_path, dtype=dtype, device=self.device, quantize=material.quantized_base
        )
        self.base_held_out, reference = self._measure(self.base)
        if reference is None:
            raise InputError(
                "the base model's own loss is not finite on the rows of the race; `lora-select analyze` names the layer"
            )
        self.base_reference = reference

    def probe(self, key: str, spec: AdapterSpec, steps: int) -> Trial:
        """A probe from disk, or a new one that is then on disk."""
        known = self.done.get((key, spec.learning_rate, steps))
        if known is not None:
            return known
        began = time.monotonic()
        factors = self.folder / f"{key}.safetensors"
        material = self.material
        start = write_initialization(spec, Path(material.base_path), material.tensors, factors, material.quantized_base)
        plan = shortened(self.training, steps, spec.learning_rate)
        with adapted(self.base, spec, plan, str(start) if start else None) as network:
            losses = train(network, spec, plan, self.train, self.pad_id)
            whole = len(losses) == steps
            held_out, reference = self._measure(network.eval()) if whole else ((), None)
        factors.unlink(missing_ok=True)
        made = Trial(
            key=key,
            learning_rate=spec.learning_rate,
            steps=steps,
            seed=plan.seed,
            held_out=held_out,
            reference=reference,
            train=tuple(loss for loss in losses if math.isfinite(loss)),
            tokens=trained_tokens(plan, self.train, len(losses)),
            seconds=round(time.monotonic() - began, 2),
        )
        append_line(self.folder / PROBES, dataclasses.asdict(made))
        return made

    def _measure(self, network: Any) -> tuple[tuple[float, ...], float | None]:
        """Held-out losses and the reference loss per token; neither where one of them is no number."""
        from lora_select.evaluation.model_losses import row_losses

        try:
            held_out = row_losses(network, self.held_out, self.pad_id, EVAL_BATCH, self.device)
            reference = row_losses(network, self.reference, self.pad_id, EVAL_BATCH, self.device)
        except RuntimeError:
            return (), None
        return tuple(held_out), sum(reference) / sum(sum(row.label_mask) for row in self.reference)


def shortened(plan: TrainingPlan, steps: int, rate: float) -> TrainingPlan:
    """The plan with a schedule of `steps`, warm-up in proportion; it goes over the rows again where it must."""
    return dataclasses.replace(
        plan,
        total_steps=steps,
        warmup_steps=max(1, round(steps * plan.warmup_steps / plan.total_steps)),
        learning_rate=rate,
        epochs=max(plan.epochs, float(steps * plan.effective_batch_size)),  # only a bound: it must not end the probe
    )


def _read(file: Path) -> dict[tuple[str, float, int], Trial]:
    """Probes of an earlier attempt."""
    probes = [from_json(Trial, line, place=file.name) for line in whole_lines(file)]
    return {(probe.key, probe.learning_rate, probe.steps): probe for probe in probes}


def _weights(base: Any, spec: AdapterSpec) -> dict[str, Any]:
    named = ((name, p) for name, p in base.named_parameters() if name.endswith(".weight"))
    return {name: p.detach().clone() for name, p in named if spec.adapts(name.removesuffix(".weight"))}


def _put_back(base: Any, kept: dict[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, value in kept.items():
            base.get_parameter(name).copy_(value)
