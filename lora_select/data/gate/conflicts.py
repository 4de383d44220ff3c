"""One prompt, different answers; and in sets with few answers, labels that a classifier of the other rows disagrees with."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lora_select.data.gate.checked_rows import Flag, GateRow, NothingToJudgeBy, normal_key, normalised, shortened
from lora_select.data.likeness import similar

NEAR_PROMPT = 0.9
FEW_ANSWERS = 50
LABEL_LIKE = 0.2
LABEL_LETTERS = 60
LEAST_ROWS = 100
LARGEST_SAMPLE = 5_000
DOUBT = 0.1
TRUSTED = 2 / 3
"""Share of the rows that the classifier is sure of in which it has to agree with the label; else it says more of itself than of the labels."""
LETTERS = 800
_DIGITS = re.compile(r"\d+")


def conflicts(rows: Sequence[GateRow]) -> list[Flag]:
    """Rows whose prompt (system message, tools and all turns before the answer) has another answer elsewhere.

    Case, punctuation and spaces make no difference. In sets with few different answers prompts that are near one another (0.9) and hold
    the same numbers count as one; in others a near prompt may well have an answer of its own.
    """
    prompts: dict[bytes, dict[str, int]] = {}
    keys: list[bytes] = []
    for row in rows:
        key = _prompt_key(row)
        keys.append(key)
        answers = prompts.setdefault(key, {})
        answer = _answer_key(row)
        answers[answer] = answers.get(answer, 0) + 1
    found: dict[int, str] = {}
    for index, row in enumerate(rows):
        if len(prompts[keys[index]]) > 1:
            found[index] = f"{len(prompts[keys[index]])} answers to one prompt: {shortened(row.answer, 40)!r}"
    if _labels(rows):
        for one, other in _near_prompts(rows):
            for index, twin in ((one, other), (other, one)):
                found.setdefault(
                    index,
                    f"{shortened(rows[index].answer, 40)!r}, but {shortened(rows[twin].answer, 40)!r} for a near prompt",
                )
    return [Flag(rows[index].row_id, rows[index].split, seen) for index, seen in sorted(found.items())]


def label_noise(rows: Sequence[GateRow]) -> list[Flag]:
    """Rows of a set of labels whose answer a classifier of the other rows holds for wrong with confidence.

    Five-fold cross-fitted logistic regression on character n-grams of the prompt; flagged where another label is as probable as it is in
    the mean over its own rows, and the row's own below 0.1. Only sets of at most 50 different answers are looked at.

    Raises:
        NothingToJudgeBy: the classifier disagrees with over a third of the labels that it is sure of.

    References:
        Northcutt, Jiang, Chuang (2021), *Confident learning*, JAIR 70 (cross-fitted probabilities against given labels).
    """
    if len(rows) < LEAST_ROWS or not _labels(rows):
        return []
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    sample = [row for row in rows[:LARGEST_SAMPLE] if row.answer.strip()]
    counts = Counter(normalised(row.answer) for row in sample)
    sample = [row for row in sample if counts[normalised(row.answer)] >= 5]
    names = sorted({normalised(row.answer) for row in sample})
    if len(names) < 2:
        return []
    labels = np.array([names.index(normalised(row.answer)) for row in sample])
    texts = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), max_features=50_000, sublinear_tf=True
    ).fit_transform([row.question[:LETTERS] for row in sample])
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    sure: Any = cross_val_predict(
        LogisticRegression(C=20.0, max_iter=300), texts, labels, cv=folds, method="predict_proba"
    )
    own, best = sure[np.arange(len(labels)), labels], sure.argmax(axis=1)
    usual = np.array([sure[labels == label, label].mean() for label in range(len(names))])
    agrees, is_sure = best == labels, sure[np.arange(len(labels)), best] >= usual[best]
    right = (agrees & is_sure).sum() / max(1, is_sure.sum())
    if right < TRUSTED:
        raise NothingToJudgeBy(
            f"a classifier of the prompts gives another label to {1 - right:.0%} of the rows that it is sure of, "
            "so it cannot tell a wrong label from a right one"
        )
    return [
        Flag(row.row_id, row.split, f"{shortened(row.answer, 30)!r}, where others suggest {names[best[i]]!r}")
        for i, row in enumerate(sample)
        if not agrees[i] and is_sure[i] and own[i] < DOUBT
    ]


def not_compared(rows: Sequence[GateRow]) -> str | None:
    """Why `label_noise` looks at no row, or not at all of them; None where it looks at all."""
    if len(rows) < LEAST_ROWS:
        return f"{len(rows)} rows are too few to learn labels from"
    if not _labels(rows):
        return (
            f"the answers are no labels: these are 2 to {FEW_ANSWERS} different ones of at most {LABEL_LETTERS} letters, "
            f"each for {round(1 / LABEL_LIKE)} rows in the mean"
        )
    return f"only {LARGEST_SAMPLE:,} of {len(rows):,} rows were looked at" if len(rows) > LARGEST_SAMPLE else None


def _labels(rows: Sequence[GateRow]) -> bool:
    """Whether the answers are labels: few different ones, each short."""
    seen: Counter[str] = Counter()
    total = 0
    for row in rows:
        total += 1
        seen[normalised(row.answer)] += 1
        if len(seen) > FEW_ANSWERS:
            return False
    return 2 <= len(seen) <= max(2.0, LABEL_LIKE * total) and all(len(answer) <= LABEL_LETTERS for answer in seen)


def _near_prompts(rows: Sequence[GateRow]) -> list[tuple[int, int]]:
    made = similar.sketch((row.question for row in rows), count=len(rows))
    found = similar.clusters(made, lambda index: rows[index].question, NEAR_PROMPT)
    return [
        (one, other)
        for one, other, _ in found.pairs
        if _answer_key(rows[one]) != _answer_key(rows[other])
        and _frame(rows[one]) == _frame(rows[other])
        and _DIGITS.findall(rows[one].question) == _DIGITS.findall(rows[other].question)
    ]


def _frame(row: GateRow) -> str:
    """What stands around a question: system messages and tools."""
    return json.dumps(
        [[turn["content"] for turn in row.messages if turn["role"] in ("system", "developer")], row.tools],
        sort_keys=True,
    )


def _prompt_key(row: GateRow) -> bytes:
    return normal_key(row, row.last) if row.last else row.row_id.encode()


def _answer_key(row: GateRow) -> str:
    return normalised(row.answer) or row.answer.strip()
