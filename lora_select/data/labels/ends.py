"""The tokens at which generation stops: the tokenizer's, the model's own, and what the chat template puts after a turn."""

import functools
import json
from pathlib import Path
from typing import Any

PROBE_ANSWER = "probe"


def stop_ids(tokenizer: Any) -> list[int]:
    """Ids of the end tokens of a tokenizer that was loaded from a model's folder.

    The three differ: Gemma's template ends turns with `<end_of_turn>` while the tokenizer's end token is `<eos>`, gpt-oss ends
    calls with `<|call|>`, which only `generation_config.json` names.
    """
    template = getattr(tokenizer, "chat_template", None)
    return list(_stop_ids(tokenizer, json.dumps(template), str(getattr(tokenizer, "name_or_path", ""))))


def stop_tokens(tokenizer: Any) -> list[str]:
    """The same as they stand in rendered text."""
    return [str(token) for token in tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))]


@functools.lru_cache(maxsize=8)
def _stop_ids(tokenizer: Any, _template: str, folder: str) -> tuple[int, ...]:
    found = {tokenizer.eos_token_id, *named_by_model(folder), end_of_turn(tokenizer)}
    return tuple(sorted(token for token in found if token is not None and token < len(tokenizer)))


def named_by_model(folder: str) -> list[int]:
    """The end tokens in a model folder's `generation_config.json`, none where there is no such file."""
    try:
        value = json.loads((Path(folder) / "generation_config.json").read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    return [token for token in (value if isinstance(value, list) else [value]) if isinstance(token, int)]


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token right after an assistant turn of the chat template; None without one."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    for content in (lambda text: text, lambda text: [{"type": "text", "text": text}]):
        turns = [
            {"role": "user", "content": content("question")},
            {"role": "assistant", "content": content(PROBE_ANSWER)},
        ]
        try:
            text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        except Exception:  # a template may raise anything on turns that it does not expect
            continue
        if PROBE_ANSWER not in text:
            continue
        after = tokenizer(text.rpartition(PROBE_ANSWER)[2].lstrip(), add_special_tokens=False)["input_ids"]
        special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
        return after[0] if after and after[0] in special else None
    return None
