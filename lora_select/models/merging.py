"""Merging an adapter into its base: the output head where it is the embedding, and a config that older readers understand too."""

import json
from pathlib import Path
from typing import Any

from lora_select.records import write_text


def merge(model: Any) -> tuple[Any, bool]:
    """The base with the adapter added to its weights, and whether it has an output head of its own that the base had not.

    Where one matrix is both, adding to it as head would add to the embedding too. So the head is given a matrix of its own first, where an
    adapter is on either; it goes back to being the embedding where both come out the same. `model` is used up.

    Raises:
        NotImplementedError: PEFT cannot merge an adapter of this kind; ValueError and RuntimeError are raised for the same.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = model.get_base_model()
    tied = plain.config.get_text_config().tie_word_embeddings
    head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
    if tied and any(isinstance(one, BaseTunerLayer) for one in (head, embedding)):
        matrix = getattr(head, "base_layer", head)
        matrix.weight = torch.nn.Parameter(matrix.weight.detach().clone())
    merged = model.merge_and_unload()
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    if not tied or head is None:
        return merged, False
    own_head = not torch.equal(head.weight, embedding.weight)
    if not own_head:
        head.weight = embedding.weight
    merged.config.tie_word_embeddings = merged.config.get_text_config().tie_word_embeddings = not own_head
    return merged, own_head


def spell_rope(folder: Path) -> None:
    """Name the rotary embedding's base at the top of `config.json` too, where versions of transformers before 5 had it.

    MLX-LM 0.32.2 takes 10,000 for a Llama whose config names it under `rope_parameters` alone, without a word. transformers reads both.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope or "rope_theta" in config:
        return
    config["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
