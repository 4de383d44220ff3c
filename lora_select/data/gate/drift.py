"""Whether two datasets are alike: a classifier is asked from which of the two a held-out row is.

Character n-grams, logistic regression, five folds; a permutation test on the held-out scores. The test statistic looks at the tails as
well as at the whole, because a tenth of new rows moves the area under the curve by 0.05 and the highest scores by far more.

References:
    Lopez-Paz, Oquab (2017), *Revisiting classifier two-sample tests*, arXiv 1610.06545; Hanley, McNeil (1982), *Radiology* 143 (the
    standard error of an area under the curve).
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lora_select.data.gate.checked_rows import GateRow
from lora_select.records import Drift

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

SAMPLE = 1200
LETTERS = 400
FOLDS = 5
PERMUTATIONS = 999
LEVEL = 0.05
TAILS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LEAST = 40
TELLING = 5


def drift(rows: Iterable[GateRow], against: Iterable[GateRow], seed: int = 0) -> Drift:
    """Compare the rows of a dataset with those of another.

    Args:
        rows: the new ones.
        against: the others; up to 1,200 of each are drawn.
        seed: of the draw, the folds and the permutations.

    Returns:
        Drift: `drifted` where the permutation test's p is at most 0.05.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    texts = [_texts(chosen, random) for chosen in _apart(rows, against)]
    if min(map(len, texts)) < LEAST:
        return Drift(len(texts[0]), len(texts[1]), 0.5, 0.0, 1.0, 1.0, False, ("too few rows are new to compare them",))
    labels = np.repeat([1, 0], [len(texts[0]), len(texts[1])])
    scores = _scores([*texts[0], *texts[1]], labels, seed)
    auc = _auc(scores, labels)
    p = _permutation_p(scores, labels, random)
    error = _auc_error(auc, len(texts[0]), len(texts[1]))
    drifted = p <= LEVEL
    because = (*_lengths(texts), *_telling([*texts[0], *texts[1]], labels)) if drifted else ()
    low, high = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    return Drift(
        len(texts[0]), len(texts[1]), round(auc, 4), round(low, 4), round(high, 4), round(p, 4), drifted, because
    )


def _apart(rows: Iterable[GateRow], against: Iterable[GateRow]) -> tuple[list[str], list[str]]:
    """The texts of the rows that are new, and all of the others'; where hardly any is new, those that are left and those that are gone.

    A row that is in both would be learnt under one label and asked for under the other, so it must stand on one side only.
    """
    new, old = ({row.content[:LETTERS]: None for row in side} for side in (rows, against))
    added = [text for text in new if text not in old]
    if len(added) >= LEAST:
        return added, list(old)
    return [text for text in new if text in old], [text for text in old if text not in new]


def _texts(texts: list[str], random: Any) -> list[str]:
    return [texts[index] for index in sorted(random.permutation(len(texts))[:SAMPLE].tolist())]


def _scores(texts: list[str], labels: "NDArray[numpy.int64]", seed: int) -> "NDArray[numpy.float64]":
    """Each row's rank within its fold, by a model of the other folds."""
    import numpy as np
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    letters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 3), n_features=2**18, alternate_sign=False)
    features: Any = letters.transform(texts)
    features.data = np.sqrt(features.data)
    scores = np.zeros(len(texts))
    for train, held_out in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels):
        model = LogisticRegression(C=10.0, max_iter=200, solver="liblinear").fit(features[train], labels[train])
        value = model.decision_function(features[held_out])
        scores[held_out] = (np.argsort(np.argsort(value)) + 0.5) / len(held_out)
    return scores


def _telling(texts: list[str], labels: "NDArray[numpy.int64]") -> tuple[str, ...]:
    """Words that are commoner in one set, by the difference of the shares of rows that hold them."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    words = CountVectorizer(binary=True, min_df=5, max_features=20_000, token_pattern=r"(?u)\b[^\W\d]{3,}\b")
    try:
        counts = words.fit_transform(texts)
    except ValueError:
        return ()
    names = words.get_feature_names_out()
    new = np.asarray(counts[labels == 1].mean(axis=0)).ravel().clip(0, 1)
    old = np.asarray(counts[labels == 0].mean(axis=0)).ravel().clip(0, 1)
    error = np.sqrt(new * (1 - new) / max(1, labels.sum()) + old * (1 - old) / max(1, (labels == 0).sum())) + 1e-3
    z = (new - old) / error
    order = np.argsort(-np.abs(z))[:TELLING]
    return tuple(f"{names[i]!r} in {new[i]:.1%} of the rows, before in {old[i]:.1%}" for i in order if abs(z[i]) > 3.5)


def _lengths(texts: list[list[str]]) -> tuple[str, ...]:
    from scipy.stats import mannwhitneyu

    new, old = ([len(text) for text in found] for found in texts)
    if mannwhitneyu(new, old).pvalue > 0.01:
        return ()
    return (f"rows have {sorted(new)[len(new) // 2]} letters in the median, before {sorted(old)[len(old) // 2]}",)


def _auc(scores: "NDArray[numpy.float64]", labels: "NDArray[numpy.int64]") -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _auc_error(auc: float, positive: int, negative: int) -> float:
    """Hanley and McNeil (1982)."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (one - auc**2) + (negative - 1) * (two - auc**2)
    return math.sqrt(max(0.0, variance) / (positive * negative))


def _permutation_p(scores: "NDArray[numpy.float64]", labels: "NDArray[numpy.int64]", random: Any) -> float:
    """P(the statistic of shuffled labels >= the one seen), one of them being the one seen."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order))[::-1]
    share = labels.mean()
    sizes = [max(5, round(tail * len(labels))) for tail in TAILS]

    def statistic(shuffled: Any) -> float:
        best = ((ranks * shuffled).sum() / shuffled.sum() - ranks.mean()) / (
            ranks.std() * math.sqrt((1 - share) / (share * len(labels)))
        )
        for size in sizes:
            spread = math.sqrt(size * share * (1 - share) * (1 - size / len(labels)))
            best = max(best, (shuffled[order[:size]].sum() - size * share) / spread)
            best = max(best, (size * share - shuffled[order[-size:]].sum()) / spread)
        return float(best)

    seen = statistic(labels)
    above = sum(statistic(random.permutation(labels)) >= seen - 1e-12 for _ in range(PERMUTATIONS))
    return (above + 1) / (PERMUTATIONS + 1)
