"""Whether an answer without a full stop was cut off, or ends as the set's sentences end: a title, a team sheet, a forgotten stop.

A cut falls anywhere, so behind it stands the beginning of a longer word or a word that sentences seldom end with.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

READ = 5_000
"""Whole answers that are read for how often a word ends a sentence; evenly drawn from the set."""
OFTENER = 4.0
"""A word that ends a sentence so many times as often as words do on average stands at an end and not at a cut."""
CLOSING = 3
"""Words of an ending that several answers share; such an ending is a form of the set."""

_SYLLABIC = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_SYLLABIC}]|[^\W{_SYLLABIC}]+(?:['’-][^\W_{_SYLLABIC}]+)*")
_STOP = re.compile(r"[.!?…。！？।؟](?!\w)")
_TAIL = 80


def cut_off(endings: Sequence[str], whole: Sequence[str]) -> list[bool]:
    """For each text without an end, whether it was cut off.

    Args:
        endings: texts that do not end a sentence.
        whole: texts of the same set that do.

    >>> whole = ["The old bridge crosses the river.", "A boat waits on the river.", "They paint the bridge."] * 20
    >>> cut_off(["They cross the", "They cross the ri", "A boat on the river", "Played in Yeovil"], whole)
    [True, True, False, False]
    """
    ends, middles = _counts(whole)
    words = sorted(ends.keys() | middles.keys())
    usual = ends.total() / max(1, ends.total() + middles.total())
    closings = Counter(map(_closing, dict.fromkeys(endings)))

    def cut(text: str) -> bool:
        if closings[_closing(text)] > 1:
            return False
        tail = text[-_TAIL:].rstrip()
        found = list(_WORD.finditer(tail))
        if not found or found[-1].end() != len(tail):
            return True
        word = found[-1].group().casefold()
        if seen := ends[word] + middles[word]:
            return ends[word] / seen < OFTENER * usual
        return _begins_another(word, words)

    return [cut(text) for text in endings]


def _counts(whole: Sequence[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each word stands before a full stop, and elsewhere."""
    ends, middles = Counter[str](), Counter[str]()
    for text in whole[:: -(-len(whole) // READ) or 1]:
        for word in _WORD.finditer(text):
            (ends if _STOP.match(text, word.end()) else middles)[word.group().casefold()] += 1
    return ends, middles


def _begins_another(word: str, words: Sequence[str]) -> bool:
    place = bisect_right(words, word)
    return place < len(words) and words[place].startswith(word)


def _closing(text: str) -> tuple[str, ...]:
    return tuple(text[-_TAIL:].casefold().split()[-CLOSING:])
