"""Rows that teach nothing good: empty, repeated, refusing, cut off, in another language, or damaged.

What is cut off and what is the wrong language is judged by the set's own habit, and not at all where the set has none.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lora_select.data.gate.checked_rows import Flag, GateRow, shortened
from lora_select.data.gate.endings import cut_off

HABIT = 0.95
LEAST_ROWS = 30
LEAST_WORDS = 6
REPEATED = 0.5
REPEAT_WORDS = 24
LANGUAGE_LETTERS = 60
LANGUAGE_READ = 300
LANGUAGE_HABIT = 0.9
LANGUAGE_SURE = 0.9

_NOTHING = re.compile(
    r"^[\W_]*$|^(n/?a|none|null|nan|todo|tbd|undefined|nil|-|\[?(deleted|removed|empty)\]?)[\W_]*$", re.I
)
_REFUSAL = re.compile(
    r"^\W*(i'?m|i am|we'?re|we are)?\s*(very |really |so |truly )?(sorry|afraid)\b.{0,60}\b(can'?t|cannot|can not|won'?t|unable|not able|don'?t|do not)\b"
    r"|^\W*(unfortunately,? )?i (can'?t|cannot|can not|won'?t|will not|am unable to|'?m unable to|am not able to|'?m not able to) "
    r"(help|assist|provide|comply|fulfil|fulfill|answer|do that|generate|create|write|engage|discuss|continue|complete|process|access|browse)"
    r"|\bas an? (ai|artificial intelligence)\b.{0,30}\b(model|assistant|i)\b|\bas a (large )?language model\b"
    r"|^\W*i (must|have to) (decline|refuse)|\bi apologi[sz]e,? but\b.{0,60}\b(can'?t|cannot|unable|not able)\b"
    r"|\bmy (training data|knowledge) (only )?(goes up to|cutoff|was last updated)|\bopenai'?s? (content )?polic(y|ies)\b",
    re.I | re.S,
)
_ENDS = re.compile(r"""[.!?…:;。！？।؟]["'”’»)\]}*_`]*\s*$|[)\]}>"'”’»`|]\s*$|```\s*$""")
_SENTENCE_ENDS = re.compile(r"""[.!?…。！？।؟]["'”’»)\]}*_`]*\s*$""")
_MOJIBAKE = re.compile(
    r"[ÂÃÄÅâðÐÑ][\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]{1,3}"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffd\ufffe\uffff]")


def empty(rows: Sequence[GateRow]) -> list[Flag]:
    """Answers that hold no letter or digit, or only a word for nothing (N/A, null, TODO)."""
    return [
        Flag(row.row_id, row.split, f"the answer is {shortened(row.answer, 20)!r}")
        for row in rows
        if len(row.answer) < 40 and _NOTHING.match(row.answer.strip()) and not _is_operator_set(row.answer)
    ]


def repeated(rows: Sequence[GateRow]) -> list[Flag]:
    """Answers that say the same again and again: over half of the 4-grams of words (or of 12-grams of letters) are repeats."""
    found = []
    for row in rows:
        share = repetition(row.answer)
        if share > REPEATED:
            found.append(
                Flag(row.row_id, row.split, f"{share:.0%} of the answer repeats itself: {shortened(row.answer, 40)!r}")
            )
    return found


def repetition(text: str) -> float:
    """Share of a text's 4-grams of words that stood in it before; of letters' 12-grams where it has few words.

    >>> repetition("the end " * 20) > 0.9, repetition("every word of this sentence stands in it once and no more than that")
    (True, 0.0)
    """
    words = text.split()
    if len(words) >= REPEAT_WORDS:
        runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
        return 1 - len(set(runs)) / len(runs)
    if len(text) >= 80:
        letters = [text[i : i + 12] for i in range(len(text) - 11)]
        return 1 - len(set(letters)) / len(letters)
    if len(words) >= 8:
        return (Counter(words).most_common(1)[0][1] - 1) / len(words)
    return 0.0


def refusals(rows: Sequence[GateRow]) -> list[Flag]:
    """Answers that decline, or speak of being a language model."""
    return [
        Flag(row.row_id, row.split, shortened(row.answer))
        for row in rows
        if _REFUSAL.search(row.answer[:300].replace("’", "'"))
    ]


def truncated(rows: Sequence[GateRow]) -> list[Flag]:
    """Answers that stop in the middle, where 95 % of the set's end a sentence (or parse as JSON); a fence left open counts too.

    An end without a full stop is judged by `endings.cut_off`.
    """
    answers = [row for row in rows if len(row.answer.split()) >= LEAST_WORDS]
    found: dict[str, Flag] = {}
    ending = [row for row in answers if _SENTENCE_ENDS.search(row.answer)]
    if len(answers) >= LEAST_ROWS and len(ending) >= HABIT * len(answers):
        unended = [row for row in answers if not _ENDS.search(row.answer)]
        cut = cut_off([row.answer for row in unended], [row.answer for row in ending]) if unended else []
        fenced = [row for row in answers if row.answer.count("```") % 2]
        for row in [*(row for row, is_cut in zip(unended, cut, strict=True) if is_cut), *fenced]:
            found[row.row_id] = Flag(row.row_id, row.split, f"ends …{shortened(row.answer[-40:], 40)!r}")
    structured = [row for row in rows if row.answer.lstrip()[:1] in ("{", "[")]
    whole = [row for row in structured if _is_json(row.answer)]
    if len(structured) >= LEAST_ROWS and len(whole) >= HABIT * len(structured) and len(structured) >= HABIT * len(rows):
        for row in structured:
            if not _is_json(row.answer):
                found[row.row_id] = Flag(
                    row.row_id, row.split, f"JSON that does not end: …{shortened(row.answer[-40:], 40)!r}"
                )
    return list(found.values())


def no_truncation_habit(rows: Sequence[GateRow]) -> str | None:
    """Why `truncated` has nothing to judge by, or None."""
    answers = [row for row in rows if len(row.answer.split()) >= LEAST_WORDS]
    structured = sum(row.answer.lstrip()[:1] in ("{", "[") for row in rows)
    if structured >= max(LEAST_ROWS, HABIT * len(rows)):
        return None
    if len(answers) < LEAST_ROWS:
        return f"answers of {LEAST_WORDS} words or more: {len(answers)}, too few to see how the set's sentences end"
    ending = sum(_SENTENCE_ENDS.search(row.answer) is not None for row in answers)
    if ending < HABIT * len(answers):
        return f"only {ending / len(answers):.0%} of the answers end a sentence, so an open end means nothing here"
    return None


def wrong_language(rows: Sequence[GateRow]) -> list[Flag]:
    """Answers (or, where answers are short, prompts) in another language than 90 % of the set's are in.

    py3langid, on texts of 60 letters or more; flagged where it is 90 % sure of another language.
    """
    found: dict[str, Flag] = {}
    for part in ("answer", "question"):
        seen = _languages(rows, part)
        counts = Counter(language for language, sure in seen.values() if sure >= LANGUAGE_SURE)
        total = sum(counts.values())
        if total < LEAST_ROWS:
            continue
        [(usual, most)] = counts.most_common(1)
        if most < LANGUAGE_HABIT * total:
            continue
        for index, (language, sure) in seen.items():
            if language != usual and sure >= LANGUAGE_SURE:
                row = rows[index]
                found.setdefault(row.row_id, Flag(row.row_id, row.split, f"the {part} is {language}, the set {usual}"))
    return list(found.values())


def damaged(rows: Sequence[GateRow]) -> list[Flag]:
    """Text that was decoded wrongly (`Ã©` for `é`), replaced letters (U+FFFD), and control characters."""
    found = []
    for row in rows:
        text = row.everything
        seen = damage(text)
        if seen:
            found.append(Flag(row.row_id, row.split, seen))
    return found


def damage(text: str) -> str:
    """What of a text is damaged, or an empty string.

    >>> damage("café"), damage("cafÃ©")
    ('', "'Ã©' stands for 'é'")
    """
    if text.isascii() and not _CONTROL.search(text):
        return ""
    control = _CONTROL.search(text)
    if control:
        name = unicodedata.name(control.group(), f"control character U+{ord(control.group()):04X}")
        return f"holds {name.lower()}"
    for match in _MOJIBAKE.finditer(text):
        for piece in (match.group(), match.group()[:3], match.group()[:2]):
            mended = _mended(piece)
            if mended:
                return f"{piece!r} stands for {mended!r}"
    return ""


def _mended(piece: str) -> str:
    for encoding in ("cp1252", "latin-1"):
        try:
            mended = piece.encode(encoding).decode("utf-8")
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue
        if len(mended) < len(piece):
            return mended
    return ""


def _languages(rows: Sequence[GateRow], part: str) -> dict[int, tuple[str, float]]:
    """`index -> (language, probability)` of the texts that are long enough to tell."""
    identifier = _identifier()
    seen = {}
    for index, row in enumerate(rows):
        text = getattr(row, part)[:LANGUAGE_READ]
        if _letters(text) < LANGUAGE_LETTERS or text.lstrip()[:1] in ("{", "["):
            continue
        language, sure = identifier.classify(text)
        seen[index] = (language, float(sure))
    return seen


@cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(str(Path(langid.MODEL_DIR) / langid.MODEL_FILE), norm_probs=True)


def _letters(text: str) -> int:
    """Letters of a text; a Chinese, Japanese or Korean sign says as much as three."""
    return sum(letter.isalpha() * (1 if letter < "\u2e80" else 3) for letter in text)


def _is_operator_set(answer: str) -> bool:
    """Whether an answer without letters may be meant: a symbol, a formula's sign, an emoji."""
    text = answer.strip()
    return (bool(text) and not _NOTHING.match(text.replace("-", ""))) or any(
        unicodedata.category(c) in ("So", "Sm") for c in text
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
