"""The entries of each record type in MLflow, one function a type."""

import json
from collections.abc import Callable
from typing import Any

from lora_select import records
from lora_select.tracking import logged_models, names
from lora_select.tracking.entry_types import DatasetEntry, Entries

COLUMNS = {"row_id": True, "messages": True, "tools": False}
"""Of the canonical files that `data.intake` writes: JSON in strings."""


def _dataset(record: records.Dataset) -> Entries:
    rejected = sum(reason.count for reason in record.rejected)
    read = sum(source.rows for source in record.sources)

    def split(name: str, file: records.FileRef, digest: str, context: str, rows: int) -> DatasetEntry:
        counts = {"num_rows": rows, "bytes": file.size, "rows_read": read, "rows_rejected": rejected}
        return DatasetEntry(name, digest, record.source, context, rows, COLUMNS, counts)

    return Entries(
        params={"dataset": record.name, "dataset/format": record.format, "dataset/source": record.source},
        metrics={
            "dataset/train_rows": record.train_rows,
            "dataset/eval_rows": record.eval_rows,
            "dataset/rejected_rows": rejected,
            **{f"dataset/rejected/{reason.reason}": reason.count for reason in record.rejected},
        },
        tags={names.DATASET_SHA256: record.digest},
        files={record.rejected_file.path: "dataset"},
        datasets=(
            split(record.name, record.train_file, record.digest, "training", record.train_rows),
            split(f"{record.name} eval", record.eval_file, record.eval_file.sha256, "evaluation", record.eval_rows),
        ),
    )


def _gate(record: records.Gate) -> Entries:
    return Entries(
        metrics={
            "gate/findings": len(record.findings),
            "gate/kept_rows": record.kept,
            **{f"gate/{item.rule}": item.count for item in record.findings},
        },
        tags={"gate": record.verdict},
    )


def _change(record: records.VersionChange) -> Entries:
    counts = {name: getattr(record, name) for name in ("added", "removed", "unchanged")}
    return Entries(
        metrics={f"change/{name}": count for name, count in counts.items()}
        | {"change/drifted": float(record.verdict == "drifted")}
    )


def _base_model(record: records.BaseModel) -> Entries:
    return Entries(
        params={"base_model": record.source, "base_model/architecture": record.architecture},
        metrics={"base_model/parameters": record.num_parameters},
        tags={names.MODEL_SHA256: record.digest},
    )


def _profile(record: records.DatasetProfile) -> Entries:
    counts = (
        "rows",
        "tokens",
        "prompt_tokens",
        "label_tokens",
        "duplicate_rows",
        "rows_truncated",
        "rows_without_labels",
    )
    splits = {"train": record.train, "eval": record.eval}
    return Entries(
        params={"max_length": str(record.max_length)},
        metrics={
            **{f"profile/{split}/{count}": getattr(part, count) for split, part in splits.items() for count in counts},
            **{
                f"profile/{split}/length_p{q}": getattr(part.length, f"p{q}")
                for split, part in splits.items()
                for q in (50, 99)
            },
            "profile/eval_rows_in_train": record.eval_rows_in_train,
            "profile/base_loss": record.base_loss,
            "profile/base_loss_se": record.base_loss_se,
            "profile/bits_per_byte": record.bits_per_byte,
            "profile/information_bits": record.information_bits,
        },
        tags={"profile.warnings": "\n".join(record.warnings)} if record.warnings else {},
    )


def _few_shot(record: records.FewShot) -> Entries:
    metrics = {"few_shot/examples": float(record.examples), "few_shot/enough": float(record.enough)}
    for metric, pair in record.metrics.items():
        metrics |= {names.few_shot(metric, part): value for part, value in comparison(pair).items()}
    return Entries(metrics=metrics, files={file.path: "few_shot" for file in record.files.values()})


def _spectra(record: records.Spectra) -> Entries:
    layers = record.layers
    signal = sum(layer.signal_energy for layer in layers)
    ranks = sorted(layer.signal_rank for layer in layers)
    return Entries(
        params={"spectrum/sketch_size": str(record.sketch_size), "spectrum/seed": str(record.seed)},
        metrics={
            "spectrum/layers": len(layers),
            "spectrum/skipped_layers": len(record.skipped_layers),
            "spectrum/microbatches": record.microbatches,
            "spectrum/tokens": record.tokens,
            "spectrum/mean_loss": record.mean_loss,
            "spectrum/signal_energy": signal,
            "spectrum/signal_energy_se": sum(layer.signal_energy_se**2 for layer in layers) ** 0.5,
            "spectrum/noise_energy": sum(layer.noise_energy for layer in layers),
            "spectrum/layers_above_noise": sum(layer.signal_rank > 0 for layer in layers),
            "spectrum/signal_rank_median": ranks[len(ranks) // 2] if ranks else 0,
            "spectrum/signal_rank_max": ranks[-1] if ranks else 0,
            names.COST_ANALYZE_MINUTES: record.seconds / 60,
        },
    )


def _race(record: records.Race) -> Entries:
    return Entries(
        params={"race/budget": str(record.budget), "race/rungs": ",".join(map(str, record.rungs))},
        metrics={
            "race/probes": len(record.probes),
            "race/dropped": len(record.dropped),
            "race/diverged": sum(not probe.held_out for probe in record.probes),
            "race/cost_share": record.cost,
            "race/rows": len(record.labels),
            names.COST_RACE_MINUTES: record.seconds / 60,
        },
    )


def _probe(record: records.Trial) -> Entries:
    """A probe's own run: what it was and what came out, under the keys of a race's runs."""
    return Entries(
        params={
            "candidate": record.key,
            names.LEARNING_RATE: str(record.learning_rate),
            "race/steps": str(record.steps),
        },
        metrics={
            "race/held_out_nats": sum(record.held_out),
            "race/reference_loss": record.reference,
            "race/last_train_loss": record.train[-1] if record.train else 0.0,
            "race/tokens": record.tokens,
            "race/seconds": record.seconds,
        }
        if record.held_out and record.reference is not None
        else {"race/seconds": record.seconds, "race/diverged": 1.0},
    )


def spec(record: records.AdapterSpec) -> dict[str, str]:
    """The parameters that name an adapter, each apart; the same keys for every variant."""
    return {
        **{name: str(getattr(record, name)) for name in names.SPEC_PARAMS},
        "target_modules": ",".join(record.target_modules),
    }


def _decision(record: records.Decision) -> Entries:
    lines = [f"# {record.choice_key}", "", *(f"- {reason}" for reason in record.reasons), "", "## Not chosen", ""]
    for candidate in record.candidates:
        lines += [f"- **{candidate.key}**: {sentence}" for sentence in candidate.rejected]
    chosen = next((c for c in record.candidates if c.key == record.choice_key), None)
    return Entries(
        params={
            **spec(record.choice),
            "rule": f"{record.rule} {record.rule_version}",
            "abstained": str(record.abstained),
        },
        metrics={
            "select/candidates": len(record.candidates),
            "select/tied": sum(not candidate.rejected for candidate in record.candidates),
            **({"select/score": chosen.score, "select/score_se": chosen.score_se} if chosen else {}),
            names.ADAPTER_PARAMETERS: record.choice.num_parameters,
        },
        tags={names.DECISION_SHA256: records.digest(record), names.CHOICE: record.choice_key},
        texts={"tables/candidates.json": candidate_table(record), "decision.md": "\n".join(lines) + "\n"},
    )


def candidate_table(record: records.Decision) -> str:
    """All candidates as the table that MLflow's artifact viewer shows: one row each, best score first.

    Written as text and not through `log_table`, which appends on a repeat and re-rounds numbers.
    """
    columns = ["candidate", "chosen", *names.SPEC_PARAMS, "parameters", "score", "score_se", "evidence", "rejected"]
    rows = []
    for candidate in sorted(record.candidates, key=lambda c: (-c.score, c.key)):
        measured = "; ".join(f"{e.name} = {e.value:.4g} {e.unit}".rstrip() for e in candidate.evidence)
        parts = [getattr(candidate.spec, name) for name in names.SPEC_PARAMS]
        numbers = [candidate.spec.num_parameters, candidate.score, candidate.score_se]
        chosen = candidate.key == record.choice_key
        rows.append([candidate.key, chosen, *parts, *numbers, measured, " ".join(candidate.rejected)])
    return json.dumps({"columns": columns, "data": rows}, ensure_ascii=False, indent=1)


def _plan(record: records.TrainingPlan) -> Entries:
    skipped = ("memory_gib", "minutes", "reasons", "learning_rate", "disk_gib")
    fields = {k: v for k, v in vars(record).items() if k not in skipped}
    return Entries(
        params={f"plan/{name}": str(value) for name, value in fields.items()},
        metrics={
            "plan/minutes_expected": record.minutes.expected,
            "plan/minutes_high": record.minutes.high,
            "plan/memory_gib_expected": record.memory_gib.expected,
            "plan/memory_gib_high": record.memory_gib.high,
            "plan/disk_gib": record.disk_gib,
        },
    )


def _adapter(record: records.Adapter) -> Entries:
    remedies = "\n".join(f"{item.failure} at step {item.step}: {item.action}" for item in record.remedies)
    told = record.forecast
    forecast = {"train/forecast_gain": told.value, "train/forecast_gain_se": told.standard_error or 0.0} if told else {}
    return Entries(
        metrics={
            "train/steps": record.steps,
            "train/final_loss": record.final_loss,
            "train/total_tokens": record.tokens,
            "train/label_tokens": record.label_tokens,
            "train/resumed": len(record.resumed_from),
            "train/remedies": len(record.remedies),
            names.COST_TRAIN_MINUTES: record.seconds / 60,
            names.COST_TOKENS_PER_SECOND: record.tokens / record.seconds if record.seconds > 0 else 0.0,
            names.COST_PEAK_MEMORY: record.peak_memory_gib,
            names.ADAPTER_PARAMETERS: record.spec.num_parameters,
            **forecast,
        },
        tags={names.ADAPTER_SHA256: record.digest} | ({"train.remedies": remedies} if remedies else {}),
        files={record.directory: "adapter"},
        model=logged_models.entry(record, spec(record.spec)),
    )


def _proof(record: records.ReloadCheck) -> Entries:
    return Entries(
        metrics={
            "proof/passed": record.passed,
            "proof/max_logit_difference": record.max_logit_difference,
            "proof/tolerance": record.tolerance,
            "proof/function_change": record.function_change,
        },
        tags={"proof.faults": "\n".join(record.faults)} if record.faults else {},
    )


def comparison(record: records.MetricComparison) -> dict[str, float]:
    """The numbers of one comparison, named by `names.COMPARISON_FIELDS`."""
    low, high = record.interval
    values = (record.base, record.adapted, record.difference, low, high, record.rows, record.significant)
    return {name: float(value) for name, value in zip(names.COMPARISON_FIELDS, values, strict=True)}


def _references(record: records.ReferenceText) -> Entries:
    return Entries(params={"reference_text": ", ".join([one.name for one in record.sets] + list(record.later))})


def _retention(record: records.Retention) -> Entries:
    rises = {f"retention/{one.name}/{arm}": one.rise[arm].difference for one in record.references for arm in one.rise}
    rises |= {
        f"retention/{one.name}/{arm}/exact": one.exact[arm].adapted for one in record.references for arm in one.exact
    }
    task = {f"retention/task/{arm}": pair.difference for arm, pair in record.task.items()}
    own = {"retention/strength": record.decision.strength, "retention/kappa": record.evidence.kappa}
    choice = {"retention": record.decision.choice}
    return Entries(params=choice, metrics=own | rises | task, tags=choice)


def _tasks(record: records.TasksOverTime) -> Entries:
    seen = {f"tasks/{t.name}/{name}": v for t in record.tasks for name, v in (("loss", t.losses[-1]), ("lost", t.lost))}
    return Entries(metrics={names.key(name): value for name, value in seen.items() if value is not None})


def _evaluation(record: records.Evaluation) -> Entries:
    metrics: dict[str, float] = {}
    for metric, pair in {**record.metrics, "forgetting": record.forgetting}.items():
        metrics.update({names.evaluation(metric, part): value for part, value in comparison(pair).items()})
    for other, pairs in record.against.items():
        for metric, pair in pairs.items():
            metrics.update({names.against(other, metric, part): value for part, value in comparison(pair).items()})
    for one in record.stored:
        told = {"base_loss": one.base_loss} | ({} if one.left is None else {"left": one.left})
        metrics.update({names.stored(one.form, "loss", part): value for part, value in told.items()})
        metrics.update(
            {names.stored(one.form, metric, "adapted"): pair.adapted for metric, pair in one.metrics.items()}
        )
    columns = ["prompt", "expected", "base", "adapted"]
    rows = [[getattr(sample, column) for column in columns] for sample in record.samples]
    return Entries(
        metrics=metrics,
        judged=record.adapter_digest,
        texts={"tables/samples.json": json.dumps({"columns": columns, "data": rows}, ensure_ascii=False, indent=1)},
        files={record.rows_file.path: "evaluation"},
    )


def _seed_noise(record: records.SeedNoise) -> Entries:
    return Entries(
        metrics={
            "seed_noise": record.asked,
            "seed_noise/measured": record.ratio,
            "seed_noise/low": record.interval[0],
            "seed_noise/high": record.interval[1],
            "seed_noise/seeds": len(record.seeds),
        },
        files={record.rows_file.path: "seed-noise"},
    )


def _promotion(record: records.Promotion) -> Entries:
    return Entries(
        metrics={"promote/champion": record.alias == names.CHAMPION},
        tags={
            "model.name": record.model_name,
            "model.version": record.version,
            names.ROLE: record.alias,
        },
    )


def _evidence(record: records.EvidenceFiles) -> Entries:
    refs = (record.card, record.statement, record.bom, record.croissant)
    signatures = (record.adapter_signature, record.evidence_signature)
    return Entries(
        tags={"evidence.signed_by": record.signed_by} if record.signed_by else {},
        files={ref.path: "evidence" for ref in (*refs, *signatures) if ref is not None},
    )


def _cost(record: records.Cost) -> Entries:
    numbers = {
        "flops": record.flops,
        "hours": record.hours,
        "device_hours": record.device_hours,
        "kwh": record.energy.kwh,
    }
    money = {} if record.money is None else {"money": record.money}
    return Entries(
        params={"cost/energy": f"{record.energy.source}: {record.energy.basis}"},
        metrics={f"cost/{name}": value for name, value in {**numbers, **money}.items()},
    )


def _report(record: records.Report) -> Entries:
    return Entries(files={record.file.path: "report", **{figure.path: "report/figures" for figure in record.figures}})


def _costs(record: records.AdapterCosts) -> Entries:
    errors = sorted(error.relative_error for error in record.quantisation.values())
    metrics = {"costs/curvature": record.curvature.value} if record.curvature else {}
    metrics |= {"costs/quantisation_median": errors[len(errors) // 2]} if errors else {}
    return Entries(metrics=metrics)


MAKERS: dict[type, Callable[[Any], Entries]] = {
    records.Dataset: _dataset,
    records.Gate: _gate,
    records.VersionChange: _change,
    records.ReferenceText: _references,
    records.TasksOverTime: _tasks,
    records.Retention: _retention,
    records.BaseModel: _base_model,
    records.DatasetProfile: _profile,
    records.FewShot: _few_shot,
    records.Spectra: _spectra,
    records.AdapterCosts: _costs,
    records.Race: _race,
    records.Trial: _probe,
    records.Decision: _decision,
    records.TrainingPlan: _plan,
    records.Adapter: _adapter,
    records.ReloadCheck: _proof,
    records.Evaluation: _evaluation,
    records.Promotion: _promotion,
    records.SeedNoise: _seed_noise,
    records.EvidenceFiles: _evidence,
    records.Cost: _cost,
    records.Report: _report,
}
