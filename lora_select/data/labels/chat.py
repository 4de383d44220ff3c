"""The chat template as it takes one row: which form of the messages it renders whole, tried with the row's own tools and ids.

A canonical row is `{"messages": [...], "tools": [...] | None}`. A message is `{"role", "content"}` and, where the row has
them, `tool_calls` (with `id`), `tool_call_id`, `name`, `reasoning_content` and `train` (false: context, not learnt).
"""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, final

from lora_select.data.labels import pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
Message = Mapping[str, Any]
TEXT_ROLE = "text"
TOOLS_HEAD = "You can call these functions. Answer with a JSON list of calls.\n"
NATIVE_CALLS_HEAD = "You can call these functions.\n"
MARK = "mk{}qzx"
WORDS = 200


class UnusableRowError(ValueError):
    """A row whose labels cannot be right with this tokenizer; the message is the reason that it is counted under.

    `told`: the reason is the template's own sentence or was found by comparing, not an error of its code.
    """

    def __init__(self, reason: str, *, told: bool = True) -> None:
        super().__init__(reason)
        self.told = told


@final
@dataclass(frozen=True)
class Form:
    """How a row's messages are handed to the template; the first form that keeps all of the row is taken.

    `content`: text, or a list of parts as processors of images want it. `developer`: the role that developer turns get. `tools`:
    given to the template, or described as JSON in the system turn or in the first user turn. `calls`: objects, the
    same with null in place of empty content, with arguments as JSON text, or all of it as JSON in the answer. `reasoning`: in a
    field of its own, or as `<think>...</think>` before the answer. `ids`: the row's, or made where the row has none. `thoughts`:
    `<think>...</think>` stays in the content, or becomes reasoning in its field.
    """

    content: Literal["text", "parts"] = "text"
    developer: Literal["developer", "system"] = "developer"
    tools: Literal["native", "system", "user"] = "native"
    calls: Literal["native", "null content", "text arguments", "null content, text arguments", "json"] = "native"
    reasoning: Literal["native", "content"] = "native"
    ids: Literal["row", "made"] = "row"
    thoughts: Literal["content", "field"] = "content"


@final
@dataclass(eq=False)
class Chat:
    """A tokenizer's template; remembers the form of each shape of row. Without a template messages are joined by newlines."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str
    forms: dict[Any, Form] = field(default_factory=dict)

    def form(self, row: Row) -> Form:
        """The form in which this row is rendered whole.

        Raises:
            UnusableRowError: in no form does the template take the row, or it loses part of it; the template's own words.
        """
        shape = _shape(row)
        known = self.forms.get(shape)
        if known is not None and self._fault(row, known) is None:
            return known
        found = self._find(row)
        self.forms[shape] = found
        return found

    def render(self, row: Row, form: Form, upto: int | None = None, *, prompt: bool = False) -> str:
        """The text of the first `upto` messages in a form, with the opening of an answer when `prompt`.

        Raises:
            UnusableRowError: the template raises; its own words.
        """
        messages, tools = _in_form(row, form, upto)
        if not self.template:
            return _plain(messages, self.tokenizer, prompt)
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=prompt
            )
        except Exception as error:  # a template may raise anything on what it does not expect
            own = type(error).__name__ == "TemplateError"  # what `raise_exception` raises
            raise UnusableRowError(f"the chat template refuses it: {_words(error)}", told=own) from error
        return str(text)

    @property
    def _has_field(self) -> bool:
        return any(name in self.template for name in ("reasoning_content", "thinking", "reasoning"))

    def _find(self, row: Row) -> Form:
        faults: list[tuple[Form, UnusableRowError]] = []
        for form in self._candidates(row):
            fault = self._fault(row, form) or self._blind(row, form)
            if fault is None:
                return form
            faults.append((form, fault))
        told = [(form, fault) for form, fault in faults if fault.told] or faults[:1]
        text = [fault for form, fault in told if form.content == "text"]
        raise (text or [fault for _, fault in told])[-1]  # what is left after every other form was tried

    def _candidates(self, row: Row) -> Iterator[Form]:
        """Forms with the fewest departures from the row first. JSON stands in only where the template has no say on calls."""
        messages = row["messages"]
        calls = any(m.get("tool_calls") for m in messages)
        speaks = "tool_calls" in self.template
        choices: dict[str, tuple[str, ...]] = {
            "content": ("text", "parts") if self.template else ("text",),
            "developer": ("developer", "system") if _has_role(messages, "developer") else ("developer",),
            "tools": ("native", "system", "user") if row.get("tools") else ("native",),
            "calls": _call_forms(messages) if calls else ("native",),
            "reasoning": ("native", "content") if any(m.get("reasoning_content") for m in messages) else ("native",),
            "thoughts": ("field", "content") if self._has_field and _has_thought(messages) else ("content",),
            "ids": ("row", "made") if calls and not _has_ids(messages) else ("row",),
        }
        if not self.template:
            choices |= {"tools": ("system",) if row.get("tools") else ("native",), "reasoning": ("content",)}
            choices |= {"developer": ("system",), "calls": ("json",) if calls else ("native",), "ids": ("row",)}
        ranked = itertools.product(*(list(enumerate(values)) for values in choices.values()))
        for chosen in sorted(ranked, key=lambda items: sum(place for place, _ in items)):
            form = Form(**dict(zip(choices, (value for _, value in chosen), strict=True)))  # pyright: ignore[reportArgumentType]
            if form.calls == "json" and speaks and self._raises(row, replace(form, calls="native")):
                continue
            yield form

    def _raises(self, row: Row, form: Form) -> bool:
        try:
            self.render(row, form)
        except UnusableRowError:
            return True
        return False

    def _fault(self, row: Row, form: Form) -> UnusableRowError | None:
        """What of the context the rendered text lacks; learnt turns are looked at one by one when they are located."""
        try:
            text = self.render(row, form)
        except UnusableRowError as error:
            return error
        if not self.template:
            return None
        last = max((i for i, m in enumerate(row["messages"]) if m["role"] == "assistant"), default=-1)
        for index, message in enumerate(row["messages"]):
            if message["role"] == "assistant":
                wanted = pieces.of_calls(message) if form.calls != "json" else ()
                wanted = (*wanted, pieces.rest(message)) if index < last else wanted
                if form.reasoning == "native" and index == last and message.get("reasoning_content"):
                    wanted = (*wanted, message["reasoning_content"].strip())
            else:
                wanted = (message["content"],)
            if not all(pieces.holds(text, piece) for piece in wanted):
                return UnusableRowError(f"the chat template loses text of the {message['role']} turn")
        for tool in row.get("tools") or ():
            if not pieces.holds(text, tool["function"]["name"]):
                return UnusableRowError("the chat template loses the tools")
        return None

    def _blind(self, row: Row, form: Form) -> UnusableRowError | None:
        """The same with contents and names of calls replaced by marks: "a" is in any text, a mark is there or lost."""
        if not self.template:
            return None
        marked = [_marked(message, index) for index, message in enumerate(row["messages"])]
        try:
            text = self.render({**row, "messages": marked}, form)
            toolless = self.render({**row, "messages": marked, "tools": None}, form) if row.get("tools") else ""
        except UnusableRowError:
            return None  # this template looks into the contents
        if form.content == "parts" and "'type': 'text'" in text:
            return UnusableRowError("the chat template writes a list of parts as Python does")
        for message in marked:
            called = [call["function"]["name"] for call in message.get("tool_calls") or ()]
            if not all(mark in text for mark in (message["content"], *called)):
                return UnusableRowError(
                    f"the chat template loses {'the calls of ' if called else ''}the {message['role']} turn"
                )
        return UnusableRowError("the chat template loses the tools") if text == toolless else None


@functools.lru_cache(maxsize=8)
def _chat(tokenizer: "PreTrainedTokenizerBase", template: str) -> Chat:
    return Chat(tokenizer, template)


def chat_of(tokenizer: "PreTrainedTokenizerBase") -> Chat:
    """The tokenizer's chat template, with what is known of it."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return _chat(tokenizer, template if isinstance(template, str) else json.dumps(template))


def opening(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the tokenizer puts before plain text, as text: models that were trained with a start token are lost without it."""
    ids = tokenizer("")["input_ids"]
    return str(tokenizer.decode(ids)) if ids else ""  # pyright: ignore[reportArgumentType]


def answer_text(message: Message) -> str:
    """An assistant turn's content; tool calls as a JSON list of `{"name": ..., "arguments": {...}}`."""
    calls = message.get("tool_calls")
    if not calls:
        return message.get("content") or ""
    plain = [call.get("function", call) for call in calls]
    text = json.dumps([{"name": c["name"], "arguments": c["arguments"]} for c in plain], ensure_ascii=False)
    return "\n".join(part for part in (message.get("content"), text) if part)


def turn_text(turn: Message) -> str:
    """All that a turn says: its reasoning, its content, and its calls as JSON."""
    return "\n".join(part for part in (turn.get("reasoning_content"), answer_text(turn)) if part)


def departures(form: Form) -> tuple[str, ...]:
    """What of a row is written otherwise than the row has it, in a few words each: the template has no form for it."""
    said = (
        (
            form.calls == "json",
            "tool calls are written as JSON into the answer, since the chat template has no form for them",
        ),
        (
            form.tools != "native",
            f"tools are described as JSON in the {form.tools} turn, since the chat template does not render them",
        ),
        (
            form.reasoning == "content",
            "reasoning is written as <think>...</think> before the answer, since the chat template has no form for it",
        ),
        (form.ids == "made", "tool calls without an id get one, since the chat template asks for it"),
    )
    return tuple(text for holds, text in said if holds)


def _in_form(row: Row, form: Form, upto: int | None) -> tuple[list[dict[str, Any]], list[Any] | None]:
    messages = [_message(message, form) for message in row["messages"][:upto]]
    tools = row.get("tools")
    if tools and form.tools != "native":
        head = (
            TOOLS_HEAD
            if form.calls == "json" or not any(m.get("tool_calls") for m in row["messages"])
            else NATIVE_CALLS_HEAD
        )
        messages = _described(
            messages, head + json.dumps([t.get("function", t) for t in tools], ensure_ascii=False), form.tools
        )
        tools = None
    if form.ids == "made":
        _number_calls(messages)
    if form.content == "parts":
        for message in messages:
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}] if message["content"] else []
    return messages, list(tools) if tools else None


def _message(message: Message, form: Form) -> dict[str, Any]:
    made = {key: value for key, value in message.items() if key != "train"}
    if made["role"] == "developer" and form.developer == "system":
        made["role"] = "system"
    if form.thoughts == "field" and made["role"] == "assistant" and not made.get("reasoning_content"):
        thought, rest = pieces.split_thought(made["content"])
        made |= {"reasoning_content": thought, "content": rest.lstrip("\n")} if thought else {}
    if made.get("reasoning_content") and form.reasoning == "content":
        made["content"] = f"<think>\n{made.pop('reasoning_content').strip()}\n</think>\n\n{made['content']}"
    if made.get("reasoning_content"):
        made["thinking"] = made["reasoning_content"]
    if made.get("tool_calls"):
        if form.calls == "json":
            made["content"] = answer_text(made)
            del made["tool_calls"]
        elif form.calls != "native":
            if "text arguments" in form.calls:
                made["tool_calls"] = [_with_text_arguments(call) for call in made["tool_calls"]]
            if "null content" in form.calls and not made["content"]:
                made["content"] = None
    return made


def _described(messages: list[dict[str, Any]], text: str, place: str) -> list[dict[str, Any]]:
    for message in messages[:1] if place == "system" else messages:
        if message["role"] == place:
            message["content"] = (
                f"{message['content']}\n{text}" if place == "system" else f"{text}\n\n{message['content']}"
            )
            return messages
    return [{"role": "system", "content": text}, *messages] if place == "system" else messages


def _number_calls(messages: list[dict[str, Any]]) -> None:
    """Ids of nine characters in the order of the calls; results take them in the same order."""
    made = (f"call{number:05d}" for number in itertools.count())
    waiting: list[str] = []
    for message in messages:
        if message.get("tool_calls"):
            message["tool_calls"] = [{**call, "id": next(made)} for call in message["tool_calls"]]
            waiting = [call["id"] for call in message["tool_calls"]]
        elif message["role"] == "tool" and waiting:
            message["tool_call_id"] = waiting.pop(0)


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _call_forms(messages: Sequence[Message]) -> tuple[str, ...]:
    empty = any(m.get("tool_calls") and not m["content"] for m in messages)
    more = ("null content", "text arguments", "null content, text arguments") if empty else ("text arguments",)
    return ("native", *more, "json")


def _has_ids(messages: Sequence[Message]) -> bool:
    return any(call.get("id") for m in messages for call in m.get("tool_calls") or ())


def _has_role(messages: Sequence[Message], role: str) -> bool:
    return any(m["role"] == role for m in messages)


def _marked(message: Message, index: int) -> dict[str, Any]:
    made = {**message, "content": MARK.format(index) if message["content"] else ""}
    if made.get("tool_calls"):
        made["tool_calls"] = [
            {**call, "function": {**call["function"], "name": MARK.format(f"{index}c{number}")}}
            for number, call in enumerate(made["tool_calls"])
        ]
    return made


def _has_thought(messages: Sequence[Message]) -> bool:
    return any(m["role"] == "assistant" and pieces.THOUGHT_END in m["content"] for m in messages)


def _shape(row: Row) -> Any:
    """What decides the form: roles in order, which turns hold calls, text and reasoning, and whether there are tools and ids."""
    turns = tuple(
        (m["role"], bool(m["content"]), len(m.get("tool_calls") or ()), bool(m.get("reasoning_content")))
        for m in row["messages"]
    )
    return turns, bool(row.get("tools")), _has_ids(row["messages"]), _has_thought(row["messages"])


def _words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= WORDS else text[: WORDS - 1] + "…"


def _plain(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", prompt: bool) -> str:
    end = tokenizer.eos_token or ""
    parts = [m["content"] + (end if m["role"] == "assistant" else "") + "\n" for m in messages]
    text = opening(tokenizer) + "".join(parts)
    return text if prompt or not text.endswith(f"{end}\n") or not end else text[:-1]
