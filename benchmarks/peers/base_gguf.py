"""A Llama folder as GGUF in float32, without a vocabulary: the engine is handed ids."""

import json
from pathlib import Path


def write_base_gguf(base: Path, file: Path) -> Path:
    """Write `file` from the safetensors of `base`; rows of q and k are laid out as llama.cpp's rotary embedding wants them."""
    import gguf
    import torch
    from safetensors.torch import load_file

    config = json.loads((base / "config.json").read_text())
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(512)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for weights in sorted(base.glob("*.safetensors")):
        for name, tensor in load_file(weights).items():
            count = heads if "q_proj" in name else keys if "k_proj" in name else None
            if count is not None:
                # the reference's own words: undo the rotation halves, head by head
                tensor = torch.cat([torch.stack(head.chunk(2), 1).flatten(0, 1) for head in tensor.chunk(count)])
            place = names.get_name(name, try_suffixes=(".weight",))
            assert place is not None, f"{name} has no place in a GGUF of Llama"
            writer.add_tensor(place, tensor.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
