"""Looking back at finished runs: read their records, recompute a decision, put runs side by side."""

import dataclasses
import difflib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.audit import run_entries
from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import DEFERRED
from lora_select.audit.books.ledger import in_folder
from lora_select.errors import InputError, WorldError
from lora_select.records import (
    Adapter,
    Dataset,
    DatasetProfile,
    Decision,
    Evaluation,
    FewShot,
    Gate,
    Promotion,
    Race,
    Retention,
    SeedNoise,
    Spectra,
    Verdict,
)
from lora_select.selection.prediction import PREDICTED_GAIN
from lora_select.tracking.names import LABELS


@dataclass(frozen=True)
class PastRun:
    """The records that a decision rests on, and what was known before it; `race` and `few_shot` are None where none was run.

    `evaluation` is None where the run did not get that far.
    """

    folder: Path
    profile: DatasetProfile
    spectra: Spectra
    decision: Decision
    evaluation: Evaluation | None
    race: Race | None = None
    adapter: Adapter | None = None
    few_shot: FewShot | None = None


def read_run(folder: str | Path) -> PastRun:
    """Read a run's folder.

    Raises:
        InputError: there is no such run, it has no decision yet, or a record does not parse.
    """
    path = Path(folder)
    if not (path / "decision.json").is_file():
        near = sorted(p.parent.name for p in path.parent.glob("*/decision.json")) if path.parent.is_dir() else []
        known = f"; runs with a decision there: {', '.join(near)}" if near else ""
        raise InputError(f"{path} holds no decision.json{known}; name a run's folder, such as runs/latest")
    names = ("evaluation", "race", "adapter", "few_shot")
    evaluation, race, adapter, few_shot = (path / f"{name}.json" for name in names)
    try:
        return PastRun(
            path,
            records.read(DatasetProfile, path / "profile.json"),
            records.read(Spectra, path / "spectra.json"),
            records.read(Decision, path / "decision.json"),
            records.read(Evaluation, evaluation) if evaluation.is_file() else None,
            records.read(Race, race) if race.is_file() else None,
            records.read(Adapter, adapter) if adapter.is_file() else None,
            records.read(FewShot, few_shot) if few_shot.is_file() else None,
        )
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


def seed_noise(folder: str | Path) -> tuple[SeedNoise, run_entries.StagePlace]:
    """What `lora-select noise` measured in a run, and where: its folder and the digest of its record.

    Raises:
        InputError: nothing was measured there.
        WorldError: a file of it was changed since.
    """
    place = run_entries.stages(Path(folder)).get(LABELS["SeedNoise"])
    if place is None:
        raise InputError(
            f"`promotion.seed_noise` names {folder}, where none was measured: `lora-select noise CONFIG` does that, or write a number"
        )
    if found := run_entries.stage_faults(place):
        raise WorldError(f"{found[0]}; the seed noise is not used, `lora-select noise` measures it anew")
    return records.read(SeedNoise, place.folder / run_entries.RECORD), place


def is_over(folder: Path, *, tracked: bool, now: datetime | None = None) -> bool:
    """Whether the same command would find nothing left to do in a run's folder.

    A run is not over before its report; and where it is `tracked`, not without a promotion, with one that is deferred or was begun and
    not ended, or with a request for approval that was answered or ran out since.
    """
    if not (folder / "report.json").is_file():
        return False
    if not tracked:
        return True
    if not (folder / "promotion.json").is_file():
        return False
    entries = in_folder(folder.parent).entries()
    stands = standing.of_run(entries, folder.name, now=now)
    alias = records.read(Promotion, folder / "promotion.json").alias
    return (
        alias != DEFERRED
        and not any(entry.run == folder.name for entry in standing.unfinished(entries))
        and (alias != standing.AWAITING or (stands is not None and stands.state == standing.AWAITING))
    )


def replay(folder: str | Path) -> list[str]:
    """Recompute the decision from `profile.json`, `spectra.json`, `race.json` where there is one, and the recorded constraints.

    Where there is a `few_shot.json`, whether examples are enough is recomputed from what they reached. Where there is a `retention.json`,
    its decision is recomputed from its evidence too; and where there is a `promotion.json`, the gate's answer from `evaluation.json`, the looks at the kept rows, what retention measured, and the config's policy.

    Returns:
        What differs from `decision.json`, `few_shot.json`, `retention.json` or `promotion.json`, line by line; empty when the same
        evidence gives the same bytes. Of a decision by an earlier version of the rule the sentences are left out: they were worded otherwise.
    """
    place = Path(folder)
    return (
        _choice_again(folder)
        or _examples_again(place / "few_shot.json")
        or _retention_again(place / "retention.json")
        or _verdict_again(place)
    )


def _examples_again(file: Path) -> list[str]:
    from lora_select.evaluation.few_shot import is_enough

    if not file.is_file():
        return []
    try:
        made = records.read(FewShot, file)
    except ValueError as error:
        return [str(error)]
    return _differences(
        *(records.to_json(one) for one in (made, dataclasses.replace(made, enough=is_enough(made.metrics))))
    )


def _verdict_again(folder: Path) -> list[str]:
    """The gate's answer once more, its sentences left out."""
    from lora_select.config import parse
    from lora_select.evaluation import gate
    from lora_select.pipeline.stages import judge

    kept, found = folder / "retention.json", folder / "gate.json"
    try:
        told = records.read(Promotion, folder / "promotion.json").verdict
        evaluation = records.read(Evaluation, folder / "evaluation.json")
        retention = records.read(Retention, kept) if kept.is_file() else None
        looks = records.read(Adapter, folder / "adapter.json").validation
        config = parse(
            json.loads((folder / "config.json").read_text(encoding="utf-8")), place=str(folder / "config.json")
        )
    except FileNotFoundError:
        return []
    except ValueError as error:
        return [str(error)]
    if told is None:
        return []
    policy = judge.policy(config.promotion, told.seed_noise)
    best = looks is not None and looks.base_was_best
    leaks = (
        judge.leaks(records.read(Dataset, folder / "dataset.json"), records.read(Gate, found)) if found.is_file() else 0
    )
    rises = judge.rises(retention)
    made = gate.judge(evaluation, evaluation.champion_version, policy, rises, base_was_best=best, leaks=leaks)
    made = dataclasses.replace(made, seed_noise=told.seed_noise)
    return _differences(*(records.to_json(_without_reasons(one)) for one in (told, made)))


def _without_reasons(verdict: Verdict) -> Verdict:
    criteria = tuple(dataclasses.replace(one, reason="") for one in verdict.criteria)
    return dataclasses.replace(verdict, reasons=(), criteria=criteria)


def _retention_again(file: Path) -> list[str]:
    from lora_select.retention.decide import decide

    if not file.is_file():
        return []
    try:
        made = records.read(Retention, file)
    except ValueError as error:
        return [str(error)]
    return _differences(records.to_json(made.decision), records.to_json(decide(made.evidence)))


def _choice_again(folder: str | Path) -> list[str]:
    from lora_select.selection.rule import select

    try:
        run = read_run(folder)
    except InputError as error:
        if (Path(folder) / "decision.json").is_file():
            return [str(error)]
        raise
    evidence = {"profile.json": run.decision.profile_digest, "spectra.json": run.decision.spectra_digest}
    evidence |= {"race.json": run.decision.race_digest} if run.decision.race_digest else {}
    missing = [name for name in evidence if not (run.folder / name).is_file()]
    if missing:
        return [f"{name}, which the decision was made from, is not there" for name in missing]
    changed = [name for name, digest in evidence.items() if records.sha256_file(run.folder / name) != digest]
    if changed:
        return [f"{name} is not the file that the decision was made from" for name in changed]
    recorded = (run.folder / "decision.json").read_text(encoding="utf-8")
    recomputed = records.to_json(
        select(run.profile, run.spectra, run.decision.inputs, run.race if run.decision.race_digest else None)
    )
    if recorded == recomputed:
        return []
    if is_earlier(run.decision):
        recorded, recomputed = (records.to_json(_without_words(text)) for text in (recorded, recomputed))
        if recorded == recomputed:
            return []
    return _differences(recorded, recomputed) or ["formatting of decision.json"]


def _differences(recorded: str, recomputed: str) -> list[str]:
    lines = difflib.unified_diff(
        recorded.splitlines(), recomputed.splitlines(), "recorded", "recomputed", "", "", 0, ""
    )
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))][:20]


def is_earlier(decision: Decision) -> bool:
    """Whether an earlier version of the rule made the decision."""
    from lora_select.selection.rule import RULE_VERSION

    return int(decision.rule_version) < int(RULE_VERSION)


def _without_words(text: str) -> Decision:
    """The decision without its sentences and its version: what was chosen, and every number.

    Digests of the evidence were held against the files before. This version's records may have more fields, and so other digests.
    Until version 7 a gain was predicted from constants alone, so widely that it is not any more; it decided nothing.
    """
    made = records.from_json(Decision, text)
    candidates = tuple(
        dataclasses.replace(one, rejected=(), evidence=tuple(e for e in one.evidence if e.name != PREDICTED_GAIN))
        for one in made.candidates
    )
    digests = {"profile_digest": "", "spectra_digest": "", "race_digest": made.race_digest and ""}
    return dataclasses.replace(made, reasons=(), candidates=candidates, rule_version="", **digests)


def comparison(folders: list[str]) -> str:
    """A table of runs (choice, rate, loss, exact match, forgetting) and, where the runs share a store, MLflow's link."""
    runs = [read_run(folder) for folder in folders]
    header = ("run", "choice", "rate", "loss base", "loss adapted", "95 % interval", "exact match", "forgetting")
    rows = [header, *(_row(run) for run in runs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    table = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return f"{table}\n\n{_link(runs)}"


def compared(folders: list[str]) -> list[dict[str, Any]]:
    """The same for machines: one mapping a run, with what its evaluation measured (None where it has none)."""
    return [
        {
            "run": run.folder.resolve().name,
            "choice": run.decision.choice_key,
            "learning_rate": run.decision.choice.learning_rate,
            "evaluation": None
            if run.evaluation is None
            else {name: dataclasses.asdict(item) for name, item in run.evaluation.metrics.items()}
            | {"forgetting": dataclasses.asdict(run.evaluation.forgetting)},
        }
        for run in map(read_run, folders)
    ]


def _row(run: PastRun) -> tuple[str, ...]:
    name = run.folder.resolve().name
    choice = run.decision.choice
    left = (name, run.decision.choice_key, f"{choice.learning_rate:.2g}")
    if run.evaluation is None:
        return (*left, "-", "-", "-", "-", "-")
    loss = run.evaluation.metrics["loss"]
    match = run.evaluation.metrics.get("exact_match")
    return (
        *left,
        f"{loss.base:.4f}",
        f"{loss.adapted:.4f}",
        f"{loss.interval[0]:+.4f} .. {loss.interval[1]:+.4f}",
        f"{match.base:.2f} -> {match.adapted:.2f}" if match else "-",
        f"{run.evaluation.forgetting.difference:+.4f}",
    )


def _link(runs: list[PastRun]) -> str:
    from lora_select.tracking.comparison import compare_link

    known = [json.loads(file.read_text()) for run in runs if (file := run.folder / "tracking.json").is_file()]
    if len(known) < len(runs) or len({(item["uri"], item["experiment_id"]) for item in known}) > 1:
        return "no MLflow link: the runs are not all in one MLflow experiment"
    first = known[0]
    host = first["uri"] if first["uri"].startswith("http") else "http://127.0.0.1:5000"
    link = compare_link(host, first["experiment_id"], [item["parent_run_id"] for item in known])
    return link if host == first["uri"] else f"{link}   (serve it first: lora-select ui --tracking-uri {first['uri']})"
