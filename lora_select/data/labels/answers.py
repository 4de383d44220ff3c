"""Where the answers stand: each learnt turn in the rendering in which it is generated, from the prompt's end to its end token.

Templates change earlier turns when later ones follow: Qwen3 takes their thoughts out, Phi-3 ends the last one only, gpt-oss writes
another end token, DeepSeek opens an answer with a thought that it does not keep. So each learnt turn is rendered as it will be
generated, and turns share one text only where the earlier rendering is the beginning of the later one.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.data.labels import pieces
from lora_select.data.labels.chat import Chat, Form, Row, UnusableRowError, chat_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIMMED = "the chat template writes the answer with other white space, or sets its thought apart"
CLOSED = "the chat template opens a thought that the row does not have: it is learnt to close it at once"
ENDED = "the chat template ends the answer with no end token: the tokenizer's is put there and learnt"

Span = tuple[int, int]
OPENED = re.compile(r"<([\w-]+)>\s*$")
"""A tag that a template opens at the end of a prompt: `<think>`."""
MARK = "mkanswerqzx"


@final
@dataclass(frozen=True)
class Rendered:
    """One training text and the character ranges of the answers in it, in order.

    `stops`: every range ends in a token at which generation stops. `changed`: how the text differs from the row and from the
    template, see :data:`TRIMMED`, :data:`CLOSED`, :data:`ENDED`.
    """

    text: str
    spans: tuple[Span, ...]
    stops: bool = True
    changed: frozenset[str] = frozenset()


@final
@dataclass(frozen=True)
class Turn:
    """One answer as it is generated: the text up to its end, where the answer begins, and the end's place."""

    text: str
    low: int
    high: int
    stops: bool
    changed: frozenset[str]


def learnt_turns(row: Row) -> list[int]:
    """Places of the turns that are learnt: every assistant turn whose `train` is not false."""
    return [i for i, m in enumerate(row["messages"]) if m["role"] == "assistant" and m.get("train", True)]


def rendered(row: Row, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> tuple[Rendered, ...]:
    """The training texts of a row, one where no turn changes another, else several.

    Args:
        row: a canonical row, not of plain text.
        tokenizer: has the chat template.
        stops: the tokens at which generation stops.

    Raises:
        UnusableRowError: the template refuses the row or loses part of it; says what.
    """
    chat = chat_of(tokenizer)
    form = chat.form(row)
    made: list[Rendered] = []
    for index in learnt_turns(row):
        turn = locate(chat, form, row, index, stops)
        last = made[-1] if made else None
        shared = last is not None and _begins(turn, last)
        spans = (*(last.spans if last and shared else ()), (turn.low, turn.high))
        both = last if last and shared else Rendered("", ())
        item = Rendered(turn.text, spans, turn.stops and both.stops, turn.changed | both.changed)
        made = [*made[:-1], item] if shared else [*made, item]
    return tuple(made)


def _begins(turn: Turn, earlier: Rendered) -> bool:
    end = earlier.spans[-1][1]
    return turn.low >= end and turn.text.startswith(earlier.text[:end])


def locate(chat: Chat, form: Form, row: Row, index: int, stops: Sequence[str]) -> Turn:
    """One answer in the rendering in which it is generated.

    Raises:
        UnusableRowError: the answer is not in the text, or its beginning cannot be found.
    """
    prompt = chat.render(row, form, index, prompt=True)
    text = chat.render(row, form, index + 1)
    message = row["messages"][index]
    body = _body(prompt, text)
    whole = None if body is None else _ends(body, len(prompt), message)
    if body is None or whole is None:
        body = _with_marks(chat, form, row, index, prompt) or body
        whole = None if body is None else _ends(body, len(prompt), message)
    if body is None:
        raise UnusableRowError(
            "the chat template opens an answer otherwise than it writes it, so its beginning cannot be found"
        )
    if whole is None:
        raise UnusableRowError("the chat template does not write the answer as the row has it")
    end, trimmed = whole
    opened = OPENED.search(prompt)
    closed = opened is not None and body[len(prompt) :].lstrip().startswith(f"</{opened.group(1)}>")
    changed = {TRIMMED: trimmed, CLOSED: closed}
    high, own_end = _stop(body, end, stops), ""
    if high is None:  # no later text begins with this one: the end token is not the template's
        body, own_end = body[: max(end, len(body.rstrip()))], str(chat.tokenizer.eos_token or "")
        high = len(body) + len(own_end)
        changed[ENDED] = bool(own_end)
    text = body + own_end
    return Turn(text, len(prompt), high, any(text[:high].endswith(stop) for stop in stops), _named(changed))


def _named(changed: Mapping[str, bool]) -> frozenset[str]:
    return frozenset(name for name, holds in changed.items() if holds)


def _body(prompt: str, text: str) -> str | None:
    """The text with the prompt as it is given at generation in front of it; None where the two do not fit together."""
    if text.startswith(prompt):
        return text
    bare = prompt.rstrip()
    if text.startswith(bare):  # the prompt ends in white space that the answer's rendering has not
        return prompt + text[len(bare) :].lstrip()
    opened = OPENED.search(prompt)
    head = prompt[: opened.start()] if opened else ""
    if not opened or not text.startswith(head.rstrip()):
        return None
    answer = text[len(head) :] if text.startswith(head) else text[len(head.rstrip()) :].lstrip()
    tag = opened.group(1)
    bare = answer.lstrip()
    if bare.startswith(f"<{tag}>"):  # the answer has a thought of its own: it goes on in the one that is open
        return prompt + bare[len(tag) + 2 :].lstrip("\n")
    if bare.startswith(f"</{tag}>"):
        return prompt + bare
    gap = "\n" if prompt.endswith("\n") else ""
    return f"{prompt}{gap}</{tag}>{gap * 2}{answer}"  # the answer has no thought: the open one is closed


def _with_marks(chat: Chat, form: Form, row: Row, index: int, prompt: str) -> str | None:
    """The answer's own text put where the template puts a mark: templates cut thoughts out of what they are given."""
    message = row["messages"][index]
    if pieces.THOUGHT_END not in message["content"] and not message.get("reasoning_content"):
        return None
    content = message["content"].strip()
    if message.get("reasoning_content"):
        content = f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n{content}"
    marked = {k: v for k, v in message.items() if k != "reasoning_content"} | {"content": MARK}
    text = chat.render({**row, "messages": [*row["messages"][:index], marked]}, form)
    if text.count(MARK) != 1:
        return None
    return _body(prompt, text.replace(MARK, content))


def _ends(text: str, start: int, message: Any) -> tuple[int, bool] | None:
    """Where the last part of the answer ends in `text`, and whether it is written otherwise than the row has it; None: lost."""
    content = message["content"]
    reasoning = message.get("reasoning_content", "")
    end, trimmed = start, False
    opened = pieces.find(text, reasoning, start) if reasoning else (start, start)
    if opened is None:
        return None
    end = opened[1]
    if content and text.find(content, end) >= 0:
        end = text.find(content, end) + len(content)
    else:
        trimmed = bool(content)
        for part in map(str.strip, pieces.split_thought(content)):
            place = text.find(part, end)
            if place < 0:
                return None
            end = place + len(part)
    for leaf in pieces.of_calls(message):
        found = pieces.find(text, leaf, start)
        if found is None:
            return None
        end = max(end, found[1])
    return end, trimmed


def _stop(text: str, start: int, stops: Sequence[str]) -> int | None:
    """The place after the first end token from `start` on."""
    found = [(text.find(stop, start), stop) for stop in stops]
    return min((place + len(stop) for place, stop in found if place >= 0), default=None)
