"""From messages to text: the chat template, and plain documented fallbacks where it has no say."""

from typing import TYPE_CHECKING

from lora_select.data.labels import answers, chat, ends
from lora_select.data.labels.answers import Rendered
from lora_select.data.labels.chat import TEXT_ROLE, Row, answer_text, opening, turn_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TEXT_ROLE",
    "Row",
    "answer_text",
    "is_text",
    "opening",
    "prompt_and_answer",
    "render",
    "samples",
    "turn_text",
]


def is_text(row: Row) -> bool:
    """Whether the row is plain text, every token of which is a label."""
    return len(row["messages"]) == 1 and row["messages"][0]["role"] == TEXT_ROLE


def render(row: Row, tokenizer: "PreTrainedTokenizerBase", *, upto: int | None = None, prompt: bool = False) -> str:
    """The text of the first `upto` messages (all when None), with the opening of an answer when `prompt`.

    Without a chat template the text opens as the tokenizer opens any text (`<bos>`, where it has one), messages are separated
    by one newline and answers end with the end-of-text token. Where a template does not render a row's tools, calls or
    reasoning (found by rendering them), they stand in the system message and in the answer's content: nothing the row holds is
    dropped.

    Raises:
        UnusableRowError: the template refuses the row, or loses part of it.
    """
    if is_text(row):
        return row["messages"][0]["content"] + (tokenizer.eos_token or "") if row["messages"][:upto] else ""
    template = chat.chat_of(tokenizer)
    return template.render(row, template.form(row), upto, prompt=prompt)


def samples(row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[Rendered, ...]:
    """The texts that are trained on for one row, each with the ranges that are learnt.

    A row of text is learnt whole. Of messages each learnt turn is learnt in the rendering in which it is generated: one text
    where no turn changes another, else several.

    Raises:
        UnusableRowError: the template refuses the row, or loses part of it.
    """
    if is_text(row):
        text = render(row, tokenizer)
        return (Rendered(text, ((0, len(text)),), stops=bool(tokenizer.eos_token)),)
    return answers.rendered(row, tokenizer, ends.stop_tokens(tokenizer))


def prompt_and_answer(row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """What the model is given and what it should say: all before the last learnt turn, and that turn.

    What it should say is the turn's content. Of a turn with tool calls it is the calls as the template writes them, without the end token
    and other special tokens; where they stand in the answer as JSON, that JSON.
    """
    learnt = answers.learnt_turns(row)
    if not learnt:
        return "", render(row, tokenizer)
    template = chat.chat_of(tokenizer)
    form, message = template.form(row), row["messages"][learnt[-1]]
    prompt = template.render(row, form, learnt[-1], prompt=True)
    if not message.get("tool_calls") or form.calls == "json":
        return prompt, answer_text(message)
    turn = answers.locate(template, form, row, learnt[-1], ends.stop_tokens(tokenizer))
    ids = tokenizer(turn.text[turn.low : turn.high], add_special_tokens=False)["input_ids"]
    return prompt, str(tokenizer.decode(ids, skip_special_tokens=True)).strip()  # pyright: ignore[reportArgumentType]
