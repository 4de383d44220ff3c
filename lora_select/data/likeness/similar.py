"""Near-duplicates: rows whose sets of character 5-grams overlap by a Jaccard similarity of 0.8 or more.

MinHash signatures (rensa) in bands find candidates; each candidate's similarity is then computed exactly (on 64-bit hashes of the
5-grams). Text is compared without case and runs of space. 5-grams that stand in more than 30 % of a sample of rows are an
instruction that the rows share, not what a row says, and are not compared.

References:
    Broder (1997), *On the resemblance and containment of documents*; Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, 3.4
    (the probability that bands find a pair: 1 - (1 - s^r)^b, here 0.998 at s = 0.8).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from lora_select.data.labels.render import turn_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

SHINGLE = 5
BANDS, BAND = 21, 6
PERMUTATIONS = BANDS * BAND
THRESHOLD = 0.8
SHARED = 0.3
SAMPLE, LEAST_SAMPLE = 2000, 20
SIGNATURE_SEED = 42
BATCH = 512
NEIGHBOURS = 4
LIKELY = 0.62
"""Estimated similarity from which a pair is computed exactly: five standard errors below 0.8."""

STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Sketch:
    """What is kept of each row: `bands` (rows, BANDS) 32-bit hashes, `bytes` (rows, PERMUTATIONS) low bytes of the signature.

    `shared` are the sorted hashes of the 5-grams that are not compared.
    """

    bands: "NDArray[numpy.uint32]"
    bytes: "NDArray[numpy.uint8]"
    shared: "NDArray[numpy.uint64]"


@dataclass(frozen=True)
class Clusters:
    """`label` (rows,): the smallest index in each row's cluster (its own where it has none); `pairs` that joined them, with similarity."""

    label: "NDArray[numpy.int64]"
    pairs: tuple[tuple[int, int, float], ...]


def content_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """What a row says: all turns but system messages."""
    return "\n".join(turn_text(turn) for turn in messages if turn["role"] not in ("system", "developer"))


def sketch(texts: Iterable[str], *, shared: "NDArray[numpy.uint64] | None" = None, count: int | None = None) -> Sketch:
    """Signatures of all texts, in order, a batch at a time.

    Args:
        texts: what each row says.
        shared: hashes of 5-grams that are not compared; by default those of over 30 % of the first 2,000 texts.
        count: how many texts there are, where that is known: the result is then laid out at once.
    """
    import numpy as np

    batches = _batched(texts)
    if shared is None:
        first = _sample(batches)
        shared = _shared(chain.from_iterable(first))
        batches = chain(first, batches)
    if count is None:
        held = list(chain.from_iterable(batches))
        batches, count = _batched(held), len(held)
    bands, low = np.zeros((count, BANDS), np.uint32), np.zeros((count, PERMUTATIONS), np.uint8)
    place = 0
    for batch in batches:
        bands[place : place + len(batch)], low[place : place + len(batch)] = _signed(batch, shared)
        place += len(batch)
    return Sketch(bands, low, shared)


def clusters(made: Sketch, text_at: Callable[[int], str], threshold: float = THRESHOLD) -> Clusters:
    """Rows joined by pairs whose similarity is `threshold` or more.

    Args:
        made: the sketch of all rows.
        text_at: the text of a row by index; asked for candidates only.
        threshold: a Jaccard similarity.
    """
    import numpy as np

    parent = list(range(len(made.bands)))
    pairs: list[tuple[int, int, float]] = []
    known: dict[int, Any] = {}
    for left, right in _candidates(made):
        first, second = find(parent, left), find(parent, right)
        if first == second:
            continue
        if len(known) > 4096:
            known.clear()
        for index in (left, right):
            if index not in known:
                known[index] = _set(text_at(index), made.shared)
        alike = _jaccard(known[left], known[right])
        if alike >= threshold:
            parent[max(first, second)] = min(first, second)
            pairs.append((left, right, alike))
    return Clusters(np.array([find(parent, i) for i in range(len(parent))], np.int64), tuple(pairs))


def crossing(
    one: Sketch,
    other: Sketch,
    text_of_one: Callable[[int], str],
    text_of_other: Callable[[int], str],
    threshold: float = THRESHOLD,
) -> list[tuple[int, int, float]]:
    """For each row of `other` the first found row of `one` that is near it: `(index in other, index in one, similarity)`."""
    import numpy as np

    count = len(one.bands)
    both = Sketch(np.concatenate([one.bands, other.bands]), np.concatenate([one.bytes, other.bytes]), one.shared)
    found: dict[int, tuple[int, int, float]] = {}
    for left, right in _candidates(both):
        if not (left < count <= right) or right - count in found:
            continue
        alike = _jaccard(_set(text_of_one(left), one.shared), _set(text_of_other(right - count), one.shared))
        if alike >= threshold:
            found[right - count] = (right - count, left, alike)
    return [found[index] for index in sorted(found)]


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts' 5-grams.

    >>> similarity("The same  text", "the same text"), similarity("one", "other")
    (1.0, 0.0)
    """
    import numpy as np

    nothing = np.zeros(0, np.uint64)
    return _jaccard(_set(one, nothing), _set(other, nothing))


def run_hashes(values: "NDArray[numpy.uint64]", length: int) -> "NDArray[numpy.uint64]":
    """Hashes of all runs of `length` values, in order; none where there are fewer values."""
    import numpy as np

    count = max(0, len(values) - length + 1)
    return _mixed(np.zeros(count, np.uint64), (values[place : place + count] for place in range(length)))


def _mixed(start: "NDArray[numpy.uint64]", parts: "Iterable[NDArray[numpy.uint64]]") -> "NDArray[numpy.uint64]":
    """One 64-bit hash an element of the parts, which are taken in order."""
    import numpy as np

    made = start
    for part in parts:
        made = (made ^ part) * np.uint64(STEP)
        made ^= made >> np.uint64(29)
    return made


def find(parent: list[int], index: int) -> int:
    """The root of an index in a forest of parents, whose paths are halved on the way."""
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _batched(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _sample(batches: Iterator[list[str]]) -> list[list[str]]:
    held: list[list[str]] = []
    while sum(map(len, held)) < SAMPLE and (batch := next(batches, None)) is not None:
        held.append(batch)
    return held


def _shared(texts: Iterable[str]) -> "NDArray[numpy.uint64]":
    import numpy as np

    sets = [np.unique(_hashes([text])[0]) for text in texts]
    if len(sets) < LEAST_SAMPLE:
        return np.zeros(0, np.uint64)
    values, counts = np.unique(np.concatenate(sets), return_counts=True)
    return values[counts > SHARED * len(sets)]


def _hashes(texts: Sequence[str]) -> "tuple[NDArray[numpy.uint64], NDArray[numpy.int64]]":
    """Hashes of all 5-grams of the texts, laid end to end, and each text's offsets (one more than texts)."""
    import numpy as np

    padded = [" ".join(text.lower().split()).ljust(SHINGLE) for text in texts]
    sizes = np.array([len(text) for text in padded], np.int64)
    letters = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    hashed = run_hashes(letters, SHINGLE)
    ends = np.cumsum(sizes)
    inside = np.ones(len(letters), bool)
    for back in range(1, SHINGLE):
        inside[ends - back] = False
    return hashed[inside[: len(hashed)]], np.concatenate([[0], np.cumsum(sizes - SHINGLE + 1)])


def _without(
    hashed: "NDArray[numpy.uint64]", offsets: "NDArray[numpy.int64]", shared: "NDArray[numpy.uint64]"
) -> "tuple[NDArray[numpy.uint64], NDArray[numpy.int64]]":
    import numpy as np

    if not len(shared):
        return hashed, offsets
    place = np.minimum(np.searchsorted(shared, hashed), len(shared) - 1)
    kept = shared[place] != hashed
    return hashed[kept], np.concatenate([[0], np.cumsum(kept)])[offsets]


def _signed(
    texts: Sequence[str], shared: "NDArray[numpy.uint64]"
) -> "tuple[NDArray[numpy.uint32], NDArray[numpy.uint8]]":
    import numpy as np
    import rensa

    minhash: Any = vars(rensa)["RMinHash"]
    hashed, offsets = _without(*_hashes(texts), shared)
    matrix = minhash.digest_matrix_from_flat_token_hashes(
        hashed, offsets.astype(np.uint64), PERMUTATIONS, SIGNATURE_SEED
    )
    signature = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), BANDS, BAND)
    bands = np.arange(BANDS, dtype=np.uint64)[None, :] * np.uint64(STEP) + np.zeros((len(texts), 1), np.uint64)
    bands = _mixed(bands, (signature[:, :, place] for place in range(BAND)))
    low = (signature.reshape(len(texts), PERMUTATIONS) & np.uint64(255)).astype(np.uint8)
    empty = offsets[1:] == offsets[:-1]
    result = (bands >> np.uint64(32)).astype(np.uint32)
    result[empty] = 0  # no candidate of anything: see `_runs`
    return result, low


def _candidates(made: Sketch) -> Iterator[tuple[int, int]]:
    """Pairs `(smaller, larger)` that share a band and whose signatures agree enough, each once, in order."""
    import numpy as np

    packed: list[Any] = []
    for band in range(BANDS):
        keys = made.bands[:, band]
        order = np.argsort(keys, kind="stable")
        for left, right in _runs(keys[order], order):
            for start in range(0, len(left), 2**16):
                one, other = left[start : start + 2**16], right[start : start + 2**16]
                agree = (made.bytes[one] == made.bytes[other]).mean(axis=1)
                likely = (agree - 1 / 256) / (1 - 1 / 256) >= LIKELY
                low, high = np.minimum(one, other)[likely], np.maximum(one, other)[likely]
                packed.append(low.astype(np.uint64) << np.uint64(32) | high.astype(np.uint64))
        if sum(map(len, packed)) > 2**22:
            packed = [np.unique(np.concatenate(packed))]
    if not packed:
        return
    for pair in np.unique(np.concatenate(packed)):
        yield int(pair) >> 32, int(pair) & 0xFFFFFFFF


def _runs(keys: Any, order: Any) -> Iterator[tuple[Any, Any]]:
    """Neighbours within runs of one key, and each row with the first of its run; key 0 is no key."""
    import numpy as np

    for step in range(1, NEIGHBOURS + 1):
        same = (keys[step:] == keys[:-step]) & (keys[step:] != 0)
        yield order[:-step][same], order[step:][same]
    starts = np.concatenate([[True], keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
    far = (np.arange(len(keys)) - first > NEIGHBOURS) & (keys != 0)
    yield order[first[far]], order[far]


def _set(text: str, shared: "NDArray[numpy.uint64]") -> "NDArray[numpy.uint64]":
    import numpy as np

    return np.unique(_without(*_hashes([text]), shared)[0])


def _jaccard(one: "NDArray[numpy.uint64]", other: "NDArray[numpy.uint64]") -> float:
    import numpy as np

    if not len(one) or not len(other) or min(len(one), len(other)) < 0.5 * max(len(one), len(other)):
        return 0.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
