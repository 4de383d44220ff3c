"""Rows for a person: as text, or as the tokens that a model is given, with those that it learns marked."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lora_select.data.gate import check, rules
from lora_select.data.gate.checked_rows import GateRow, Rows
from lora_select.data.intake import intake
from lora_select.data.labels.render import turn_text
from lora_select.data.store.canonical import Places, read_places
from lora_select.errors import InputError
from lora_select.records import Dataset

Piece = tuple[bool, str]
"""`(learnt, text)`."""


def shown(
    source: str,
    *,
    model: str | None = None,
    count: int = 5,
    finding: str | None = None,
    max_length: int = 1024,
    eval_source: str | None = None,
    benchmarks: Sequence[str] = (),
) -> Iterator[tuple[str, list[Piece]]]:
    """`(heading, pieces)` of the first rows of a source, or of those that a rule of the gate concerns.

    Args:
        source: as of `check_data`.
        model: renders and tokenises the rows; None shows the turns as text.
        count: how many rows.
        finding: a rule of the gate.
        max_length: tokens after which a row is cut.
        eval_source: evaluation rows, for the rule `leak`.
        benchmarks: as of `check_data`, for the rule `contamination`.

    Raises:
        InputError: nothing to read, or no such rule.
    """
    if finding is not None and finding not in rules.BY_NAME:
        if finding in rules.DEFAULTS:
            raise InputError(f"the finding {finding!r} concerns the whole set and no single rows")
        raise InputError(f"--finding {finding!r} is no rule of the gate; {rules.meant(finding)}")
    for name, value, least in (("-n", count, 1), ("--max-length", max_length, 2)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    tokenizer = _tokenizer(model)
    with tempfile.TemporaryDirectory(prefix="lora-select-") as scratch:
        folder = Path(scratch)
        dataset = intake(
            source=source,
            name="show",
            folder=folder,
            eval_source=eval_source,
            eval_fraction=0.0,
            keep_duplicates=True,
            keep_leaks=True,
            least_eval=0,
        )
        places = read_places(folder / "places.parquet")
        said = _concerned(dataset, folder, finding, check.context(model, benchmarks)) if finding else None
        left = count
        for row in _in_file_order(Rows(dataset, folder), places, said, count):
            seen = f": {said[row.row_id, row.split]}" if said else ""
            yield f"{places[row.row_id, row.split]}{seen}", _pieces(row, tokenizer, max_length)
            left -= 1
            if not left:
                return


def _in_file_order(rows: Rows, places: Places, said: Any, count: int) -> list[GateRow]:
    """The first `count` rows by file and line, so that what is shown first is what stands first."""
    import heapq

    def order(row: GateRow) -> tuple[str, int]:
        file, _, line = places[row.row_id, row.split].rpartition(":")
        return file, int(line)

    return heapq.nsmallest(count, (row for row in rows if said is None or (row.row_id, row.split) in said), key=order)


def _concerned(dataset: Dataset, folder: Path, finding: str, context: rules.Context) -> dict[tuple[str, str], str]:
    check.check_dataset(dataset, folder, only=finding, context=context)
    flags = [json.loads(line) for line in (folder / "findings.jsonl").read_text(encoding="utf-8").splitlines()]
    return {(flag["row_id"], flag["split"]): flag["seen"] for flag in flags}


def _tokenizer(model: str | None) -> Any:
    if model is None:
        return None
    from lora_select import models

    return models.load_tokenizer(models.resolve(model).path)


def _turn(turn: dict[str, Any]) -> list[Piece]:
    learnt = turn["role"] in ("assistant", "text") and turn.get("train", True)
    return [(False, f"{turn['role']}: "), (learnt, turn_text(turn)), (False, "\n")]


def _pieces(row: GateRow, tokenizer: Any, max_length: int) -> list[Piece]:
    if tokenizer is None:
        return [piece for turn in row.messages for piece in _turn(turn)]
    from lora_select.data.labels.tokenize import tokenize

    made = tokenize(row.row_id, {"messages": list(row.messages), "tools": row.tools}, tokenizer, max_length)
    if made.fault:
        return [(False, f"cannot be learnt: {made.fault}\n")]
    if not made.rows:
        return [(False, f"nothing is learnt of it: its answer begins after the first {max_length} tokens\n")]
    pieces: list[Piece] = []
    for number, tokens in enumerate(made.rows):
        if number:
            pieces.append((False, "\n--- the next answer, in the rendering in which it is generated ---\n"))
        start = 0
        ids, mask = list(tokens.input_ids), list(tokens.label_mask)
        for end in range(1, len(ids) + 1):
            if end == len(ids) or mask[end] != mask[start]:
                pieces.append((bool(mask[start]), "·".join(tokenizer.decode([i]) for i in ids[start:end])))
                start = end
    return pieces
