"""What the action `fix` does: rows are taken out and kept in a file, or personal data in them gets placeholders."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_select.data.gate import private, rules
from lora_select.data.gate.check import check_dataset
from lora_select.data.gate.checked_rows import GateRow, Rows
from lora_select.data.gate.rules import Context
from lora_select.data.intake import LEAST_EVAL, OUTPUTS, SortedRows, intake, scratch_folder, write_all
from lora_select.data.reading.conversion import canonical_row
from lora_select.data.reading.sources import Progress
from lora_select.data.store import identity
from lora_select.data.store.canonical import read_places
from lora_select.data.store.row_account import EXAMPLES, Ledger
from lora_select.data.store.spill import Buckets, SpilledRow
from lora_select.errors import InputError
from lora_select.records import Dataset, Gate, RejectedRows, file_ref

REDACTED = {"personal-data": private.PERSONAL, "secrets": private.SECRET}
REMOVED = "removed.jsonl"


def gated_intake(
    *,
    folder: Path,
    actions: Mapping[str, str] | None = None,
    context: Context | None = None,
    fix: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Dataset, Gate]:
    """Read a source, check it, and mend it: the first stage of a run as one call.

    Args:
        folder: where the files go.
        actions: rule -> action, in place of the defaults.
        context: the model's control tokens, and benchmarks.
        fix: False keeps every row as it is, whatever the actions say; what would be mended is reported.
        progress: hears of rows and rules.
        options: of `intake`.

    Returns:
        The dataset as it is trained on, and the gate's record. A verdict of `refused` is the caller's to act on (`check.refuse`).

    Raises:
        InputError: as `intake`.
    """
    chosen = rules.actions(actions)
    drop = fix and chosen["exact-duplicates"] == "fix"
    dataset = intake(folder=folder, keep_duplicates=not drop, keep_leaks=True, progress=progress, **options)
    gate = check_dataset(dataset, folder, actions=actions, context=context, progress=progress)
    if fix and any(item.action == "fix" for item in gate.findings):
        return mend(dataset, folder, gate, options.get("least_eval", LEAST_EVAL))
    return dataset, gate


def mend(dataset: Dataset, folder: Path, gate: Gate, least_eval: int = LEAST_EVAL) -> tuple[Dataset, Gate]:
    """Take out or redact the rows of every finding whose action is `fix`; the files in `folder` are replaced together.

    Rows that are taken out stand in `removed.jsonl`, whole, with rule, file and line, and are counted among the rejected.

    Returns:
        The records of the mended dataset.

    Raises:
        InputError: no training row is left, or fewer than `least_eval` evaluation rows.
    """
    removed, redacted = _concerned(folder / "findings.jsonl", gate)
    places = read_places(folder / "places.parquet")
    ledger = Ledger()
    numbers: dict[str, int] = {}
    scratch = scratch_folder(folder)
    taken: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    try:
        buckets = Buckets(scratch)
        with (scratch / REMOVED).open("w", encoding="utf-8") as stream:
            for row in Rows(dataset, folder):
                file, _, line = places[row.row_id, row.split].rpartition(":")
                rule = removed.get((row.row_id, row.split))
                if rule is None:
                    number = numbers[file] if file in numbers else numbers.setdefault(file, ledger.file(file))
                    buckets.add(_spilled(row, redacted.get((row.row_id, row.split), ()), number, int(line)))
                    continue
                taken[rule] += 1
                examples.setdefault(rule, []).append(places[row.row_id, row.split])
                gone = {
                    "rule": rule,
                    "file": file,
                    "line": int(line),
                    "split": row.split,
                    "messages": row.messages,
                    "tools": row.tools,
                }
                stream.write(json.dumps(gone, ensure_ascii=False) + "\n")
        made, sizes, leaves = _written(buckets, scratch, ledger)
        if not sizes[0] or sizes[1] < least_eval:
            raise InputError(
                f"the gate's fixes leave {sizes[0]} training and {sizes[1]} evaluation rows of {dataset.source}; at least 1 and "
                f"{least_eval} are needed: set fewer rules to fix, or bring more rows"
            )
        (scratch / "rejected.jsonl").write_bytes((folder / "rejected.jsonl").read_bytes() + _lines(scratch / REMOVED))
        for file in (*OUTPUTS, REMOVED):
            os.replace(scratch / file, folder / file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    kept = Counter(ledger.names[number] for number in made.files)
    more = tuple(
        RejectedRows(f"removed by the gate: {rule}", count, tuple(sorted(examples[rule])[:EXAMPLES]))
        for rule, count in taken.most_common()
    )
    mended = replace(
        dataset,
        digest=identity.root([leaves["train"], leaves["eval"]]),
        train_rows=sizes[0],
        eval_rows=sizes[1],
        train_file=file_ref(folder / "train.parquet", folder),
        eval_file=file_ref(folder / "eval.parquet", folder),
        rejected_file=file_ref(folder / "rejected.jsonl", folder),
        places_file=file_ref(folder / "places.parquet", folder),
        identity_file=file_ref(folder / "identity.json", folder),
        rejected=(*dataset.rejected, *more),
        sources=tuple(replace(item, accepted=kept[item.name]) for item in dataset.sources),
    )
    return mended, replace(gate, kept=sum(sizes), removed_file=file_ref(folder / REMOVED, folder))


def _concerned(path: Path, gate: Gate) -> tuple[dict[tuple[str, str], str], dict[tuple[str, str], tuple[str, ...]]]:
    """`(row_id, split)` -> the rule that takes it out, or the kinds of private data that are redacted in it."""
    fixing = {item.rule for item in gate.findings if item.action == "fix"}
    removed: dict[tuple[str, str], str] = {}
    redacted: dict[tuple[str, str], tuple[str, ...]] = {}
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            flag = json.loads(line)
            key = (flag["row_id"], flag["split"])
            if flag["rule"] in fixing and rules.BY_NAME[flag["rule"]].fix == "remove":
                removed.setdefault(key, flag["rule"])
            elif flag["rule"] in fixing:
                redacted[key] = (*redacted.get(key, ()), *REDACTED[flag["rule"]])
    return removed, redacted


def _spilled(row: GateRow, kinds: tuple[str, ...], file: int, line: int) -> SpilledRow:
    content = {"messages": list(row.messages), "tools": row.tools}
    if kinds:
        content = private.redact(content, kinds)
    made = canonical_row(content)
    return SpilledRow(made.row_id, made.prompt_id, file, line, int(row.split == "eval"), made.messages, made.tools)


def _written(
    buckets: Buckets, scratch: Path, ledger: Ledger
) -> tuple[SortedRows, tuple[int, int], dict[str, list[str]]]:
    import numpy as np

    sorted_file = scratch / "rows.arrow"
    made = SortedRows.write(sorted_file, buckets, ledger, keep_duplicates=True, keep_leaks=True)
    held_out = np.frombuffer(made.held_out, np.uint8) == 1
    keep = np.ones(len(held_out), bool)
    leaves = write_all(sorted_file, scratch, made, keep, held_out, ledger)
    return made, (int((~held_out).sum()), int(held_out.sum())), leaves


def _lines(path: Path) -> bytes:
    """The removed rows as lines of `rejected.jsonl`: place and reason."""
    made = []
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            gone = json.loads(line)
            place = {"file": gone["file"], "line": gone["line"], "reason": f"removed by the gate: {gone['rule']}"}
            made.append(json.dumps(place, ensure_ascii=False) + "\n")
    return "".join(made).encode()
