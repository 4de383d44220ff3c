"""The gate itself: every rule on every row, as one record."""

import importlib.util
import json
import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lora_select.data.gate import balance, rules
from lora_select.data.gate.checked_rows import Flag, GateRow, NothingToJudgeBy, Rows
from lora_select.data.gate.drift import drift
from lora_select.data.gate.leaks import benchmark_texts
from lora_select.data.gate.rules import Context
from lora_select.data.intake import NAMED, NOTHING, intake, own_split
from lora_select.data.reading.sources import IN_MEMORY, Progress, Source
from lora_select.data.store import identity
from lora_select.data.store.canonical import Places, read_places
from lora_select.errors import InputError
from lora_select.records import Dataset, Drift, Finding, Gate, file_ref

EXAMPLES = 5
NEEDS = {"wrong-language": "py3langid", "secrets": "detect_secrets", "label-noise": "sklearn", rules.DRIFT: "sklearn"}
"""Rules that a package of the extra `gate` does the work of."""
Z = 1.959964


def check_data(
    source: Source,
    *,
    eval: Source | None = None,  # noqa: A002  (the command line's own word)
    against: Source | None = None,
    benchmarks: Sequence[str] = (),
    model: str | None = None,
    actions: Mapping[str, str] | None = None,
    format: str = "auto",  # noqa: A002
    progress: Progress | None = None,
) -> Gate:
    """Check a source as it is: nothing is removed and nothing is trained.

    Args:
        source: a file, a folder, a pattern, `sample:<name>`, a hub id, or rows.
        eval: rows to evaluate on, which must not be among the training rows.
        against: another dataset, such as the one of the present champion, to compare with.
        benchmarks: files, folders or `package:path` whose items must not be in the rows.
        model: a model whose control tokens must not be in the rows; without it those of the common templates are looked for.
        actions: rule -> refuse, warn, fix or off, in place of the defaults (`rules.DEFAULTS`).
        format: `auto` or one of `formats.FORMATS`.
        progress: hears of rows that are read and rules that are done.

    Returns:
        Gate: the record; `verdict` is ok, findings or refused.

    Raises:
        InputError: nothing to read, no usable row, an unknown rule, a benchmark that is not there.
    """
    rules.actions(actions)  # what is wrong with them is said before anything is read
    with tempfile.TemporaryDirectory(prefix="lora-select-") as scratch:
        folder = Path(scratch) / "rows"
        dataset = _as_is(source, eval, folder, format, progress)
        other, change = None, ""
        if against is not None:
            beside = Path(scratch) / "against"
            other = Rows(_as_is(against, None, beside, "auto", progress), beside)
            change = identity.difference(beside, folder).sentence()
        gate = check_dataset(
            dataset,
            folder,
            actions=actions,
            context=context(model, benchmarks),
            against=other,
            progress=progress,
        )
    return replace(gate, change=change, findings_file=None)


def context(model: str | None, benchmarks: Sequence[str]) -> Context:
    """What the checks need: the model's control tokens and the benchmarks' texts, read once.

    Raises:
        InputError: the model or a benchmark is not there.
    """
    tokens: tuple[str, ...] = ()
    if model is not None:
        from lora_select import models
        from lora_select.data.gate.control import special_tokens

        tokens = special_tokens(models.load_tokenizer(models.resolve(model).path))
    return Context(tokens, {name: list(benchmark_texts(name)) for name in benchmarks}, model)


def check_dataset(
    dataset: Dataset,
    folder: Path,
    *,
    actions: Mapping[str, str] | None = None,
    context: Context | None = None,
    against: Sequence[GateRow] | None = None,
    only: str | None = None,
    progress: Progress | None = None,
) -> Gate:
    """Check the canonical rows of an intake and list every concerned row in `findings.jsonl` beside them.

    Args:
        dataset: the record of the intake.
        folder: where its files are.
        actions: of the rules that are not to do their default; see `rules.actions`. Where the split is our own, a leak warns by default.
        context: the model's control tokens, and benchmarks.
        against: rows of another dataset.
        only: one rule, for `data show --finding`.
        progress: hears of rules that are done.
    """
    chosen = rules.actions(actions)
    if own_split(dataset) and "leak" not in (actions or {}):
        chosen["leak"] = "warn"
    rows = Rows(dataset, folder)
    surrounding = context or Context()
    found: dict[str, list[Flag]] = {}
    not_checked = _not_checked(rows, chosen, surrounding, against, dataset)
    functions = rules.checks(surrounding)
    wanted = [rule for rule in rules.RULES if only in (None, rule.name) and rule.name not in not_checked]
    for number, rule in enumerate(wanted):
        try:
            found[rule.name] = functions[rule.name](rows)
        except NothingToJudgeBy as why:
            found[rule.name], not_checked[rule.name] = [], str(why)
        if progress:
            progress(number + 1, len(wanted), rule.name)
    for name, limit in rules.limits().items():
        if name in found and name not in not_checked and (why := limit(rows)):
            not_checked[name] = why
    places = read_places(
        folder / "places.parquet", {(flag.row_id, flag.split) for flags in found.values() for flag in flags}
    )
    _write_findings(folder / "findings.jsonl", found, places)
    sizes = {"train": dataset.train_rows, "eval": dataset.eval_rows, "all": len(rows)}
    findings = [
        finding(
            rule,
            chosen[rule.name],
            found[rule.name],
            sizes[rule.of],
            places,
            command(rule.name, dataset, surrounding),
        )
        for rule in wanted
        if found[rule.name]
    ]
    if against is not None and chosen[rules.DRIFT] != "off" and only is None:
        findings += drifted(drift(rows, against), chosen[rules.DRIFT])
    copies = {
        flag.row_id
        for name in ("exact-duplicates", "normalised-duplicates", "near-duplicates")
        for flag in found.get(name, ())
        if flag.split == "train"
    }
    return Gate(
        dataset_digest=dataset.digest,
        rows=len(rows),
        kept=len(rows),
        verdict=verdict(findings),
        actions=chosen,
        findings=tuple(findings),
        not_checked=not_checked,
        figures=balance.figures(rows, len(copies)),
        rejected={item.reason: item.count for item in dataset.rejected},
        left_out={item.name: item.reason for item in dataset.left_out},
        notes=dataset.notes,
        findings_file=file_ref(folder / "findings.jsonl", folder),
    )


def verdict(findings: Sequence[Finding]) -> str:
    """`refused`, `findings` or `ok`."""
    if any(item.action == "refuse" for item in findings):
        return "refused"
    return "findings" if findings else "ok"


def finding(rule: rules.Rule, action: str, flags: Sequence[Flag], of: int, places: Places, command: str) -> Finding:
    """What a rule found, with Wilson's 95 % interval of its rate."""
    count = len({(flag.row_id, flag.split) for flag in flags})
    low, high = wilson(count, of)
    share = f"{count / of:.1%}" if of else "0 %"
    return Finding(
        rule=rule.name,
        action=action,
        count=count,
        of=of,
        low=low,
        high=high,
        sentence=f"{count} of {of} {rule.says} ({share})",
        examples=tuple(f"{places.get((flag.row_id, flag.split), '?')}: {flag.seen}" for flag in flags[:EXAMPLES]),
        command=command,
    )


def drifted(made: Drift, action: str) -> list[Finding]:
    """The finding that two datasets differ, or none."""
    if not made.drifted:
        return []
    sentence = (
        f"the rows differ from those compared with: a classifier tells them apart with an area under the curve of {made.auc:.2f} "
        f"({made.low:.2f} to {made.high:.2f}; 0.5 if alike)"
    )
    return [Finding(rules.DRIFT, action, 1, 1, made.low, made.high, sentence, made.because, "")]


def command(rule: str, dataset: Dataset, context: Context) -> str:
    """The command that shows the rows of a finding; empty where none can: rows in memory, and leaks of our own split."""
    in_memory = "rows" in (dataset.eval_source, *(item.name for item in dataset.sources if item.sha256 == IN_MEMORY))
    if in_memory or (rule == "leak" and own_split(dataset)):
        return ""
    words = ["lora-select", "data", "show", dataset.source, "--finding", rule]
    if not own_split(dataset) and dataset.eval_source not in (NAMED, NOTHING):
        words += ["--eval", dataset.eval_source]
    if rule == "contamination":
        words += [word for name in context.benchmarks for word in ("--benchmark", name)]
    if rule == "control-tokens" and context.model:
        words += ["--model", context.model]
    return shlex.join(words)


def wilson(count: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share.

    >>> wilson(0, 100)[0], round(wilson(0, 100)[1], 3)
    (0.0, 0.037)
    """
    if not of:
        return 0.0, 1.0
    share = count / of
    middle = share + Z**2 / (2 * of)
    spread = Z * math.sqrt(share * (1 - share) / of + Z**2 / (4 * of**2))
    scale = 1 + Z**2 / of
    return max(0.0, round((middle - spread) / scale, 6)), min(1.0, round((middle + spread) / scale, 6))


def refuse(gate: Gate) -> None:
    """Stop on what the config says to refuse.

    Raises:
        InputError: every refusing finding with two examples, the command that shows the rows, and the way out.
    """
    if not gate.refusals:
        return
    lines = [
        f"{item.sentence}, such as {'; '.join(item.examples[:2])}. {f'See them: {item.command} . ' if item.command else ''}"
        f"Remove them, or set `gate.actions.{item.rule}` to {'warn' if item.rule == rules.DRIFT else 'fix or warn'}"
        for item in gate.refusals
    ]
    raise InputError("\n".join(lines))


def _as_is(source: Source, evaluation: Source | None, folder: Path, format_: str, progress: Progress | None) -> Dataset:
    folder.mkdir()
    return intake(
        source=source,
        name="check",
        folder=folder,
        format=format_,
        eval_source=evaluation,
        eval_fraction=0.0,
        keep_duplicates=True,
        keep_leaks=True,
        least_eval=0,
        progress=progress,
    )


def _not_checked(
    rows: Rows, chosen: Mapping[str, str], surrounding: Context, against: Sequence[GateRow] | None, dataset: Dataset
) -> dict[str, str]:
    """Rules that are not asked, and why."""
    made = {name: "off" for name, action in chosen.items() if action == "off"}
    if not dataset.eval_rows:
        made.setdefault("leak", "no evaluation rows to compare with; name them with --eval")
    if not surrounding.benchmarks:
        made.setdefault("contamination", "no benchmark is named; name one with --benchmark")
    if against is None:
        made.setdefault(rules.DRIFT, "no other dataset is named; name one with --against")
    for name, package in NEEDS.items():
        if importlib.util.find_spec(package) is None:
            made.setdefault(name, f"{package} is not installed; `pip install 'lora-select[gate]'` brings it")
    if len(rows) > rules.SLOW_ABOVE:
        for name in rules.SLOW:
            made.setdefault(name, f"costs minutes above {rules.SLOW_ABOVE:,} rows; check a part of the rows for it")
    return made


def _write_findings(path: Path, found: Mapping[str, Sequence[Flag]], places: Places) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for name, flags in found.items():
            for flag in flags:
                place = places.get((flag.row_id, flag.split), "?")
                line = {"rule": name, "place": place, "split": flag.split, "row_id": flag.row_id, "seen": flag.seen}
                stream.write(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n")
