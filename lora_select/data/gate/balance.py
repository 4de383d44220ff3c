"""Where the learning goes: what the rows hold in words, how unequally, and how many rows are really different."""

import math
from collections import Counter
from collections.abc import Sequence

from lora_select.data.gate.checked_rows import Flag, GateRow, normalised, of_split, shortened

LONGEST = 0.01
HEAVY = 0.25
ONE_ANSWER = 0.8
LEAST_ROWS = 100


def figures(rows: Sequence[GateRow], near_copies: int) -> dict[str, float]:
    """Counts and shares of the training rows, in words (a token is about three quarters of one).

    Args:
        rows: all rows.
        near_copies: training rows that copy another, exactly or nearly: they are taken off `effective_rows`.
    """
    prompts, answers = [], []
    kinds: Counter[str] = Counter()
    for row in rows:
        if row.split == "train":
            prompts.append(len(row.prompt.split()))
            answers.append(len(row.answer.split()))
            kinds[normalised(row.answer)[:200]] += 1
    count = len(answers)
    if not count:
        return {}
    ordered = sorted(answers)
    longest = ordered[-max(1, math.ceil(LONGEST * count)) :]
    total = max(1, sum(ordered))
    return {
        "train_rows": count,
        "effective_rows": count - near_copies,
        "prompt_words_median": sorted(prompts)[count // 2],
        "answer_words_median": ordered[count // 2],
        "answer_words_longest": ordered[-1],
        "answer_words_share_of_longest_1_percent": round(sum(longest) / total, 4),
        "different_answers": len(kinds),
        "share_of_commonest_answer": round(kinds.most_common(1)[0][1] / count, 4),
    }


def imbalance(rows: Sequence[GateRow]) -> list[Flag]:
    """The longest 1 % of the answers, where they hold over a quarter of all words; rows of one answer that is over 80 % of the set."""
    indices = of_split(rows, "train")
    if len(indices) < LEAST_ROWS:
        return []
    sizes = {index: len(rows[index].answer.split()) for index in indices}
    longest = sorted(indices, key=lambda index: -sizes[index])[: math.ceil(LONGEST * len(indices))]
    share = sum(sizes[index] for index in longest) / max(1, sum(sizes.values()))
    if share > HEAVY:
        return [Flag(rows[i].row_id, "train", f"{sizes[i]} words; the longest 1 % hold {share:.0%}") for i in longest]
    answers = Counter(normalised(rows[index].answer) for index in indices)
    common, count = answers.most_common(1)[0]
    if ONE_ANSWER * len(indices) < count and len(answers) > 1:
        return [
            Flag(rows[i].row_id, "train", f"the answer {shortened(common, 30)!r}")
            for i in indices
            if normalised(rows[i].answer) == common
        ]
    return []
