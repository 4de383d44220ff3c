"""Word 12-grams: what two texts share where one quotes the other.

References:
    Brown et al. (2020), arXiv 2005.14165, appendix C (13-grams against benchmarks); Touvron et al. (2023), arXiv 2307.09288, A.6.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lora_select.data.likeness.similar import run_hashes

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

WORDS = 12
_WORD = re.compile(r"\w+", re.UNICODE)


def grams(text: str) -> "NDArray[numpy.uint64]":
    """Hashes of all runs of 12 words, in order; none where there are fewer words. Equal within one process only."""
    import numpy as np

    found = words(text)
    return run_hashes(np.fromiter(map(hash, found), np.int64, len(found)).view(np.uint64), WORDS)


def index(texts: Iterable[str]) -> "NDArray[numpy.uint64]":
    """The sorted 12-grams of all texts, each once."""
    import numpy as np

    made = [grams(text) for text in texts]
    return np.unique(np.concatenate(made)) if made else np.zeros(0, np.uint64)


def inside(known: "NDArray[numpy.uint64]", found: "NDArray[numpy.uint64]") -> "NDArray[numpy.bool_]":
    """Which of `found` are in the sorted `known`."""
    import numpy as np

    if not len(known) or not len(found):
        return np.zeros(len(found), bool)
    return known[np.minimum(np.searchsorted(known, found), len(known) - 1)] == found


def counts(known: "NDArray[numpy.uint64]", texts: Iterable[str]) -> "NDArray[numpy.int32]":
    """In how many of the texts each of the sorted `known` stands."""
    import numpy as np

    total = np.zeros(len(known), np.int32)
    for text in texts:
        found = np.unique(grams(text))
        total[np.searchsorted(known, found[inside(known, found)])] += 1
    return total


def share(text: str, known: "NDArray[numpy.uint64]", times: "NDArray[numpy.int32]", most: int) -> tuple[float, int]:
    """Of the text's 12-grams the share that stand in 1 to `most` of the counted texts, and how many 12-grams it has.

    Those that stand in more are a phrase that the data repeats, not a quotation, and do not count at all.
    """
    import numpy as np

    own = np.unique(grams(text))
    if not len(own):
        return 0.0, 0
    seen = times[np.searchsorted(known, own)]
    own_seen = seen[seen <= most]
    return (float((own_seen > 0).mean()) if len(own_seen) else 0.0), len(own_seen)


def words(text: str) -> Sequence[str]:
    """The text's words, without case."""
    return _WORD.findall(text.lower())
