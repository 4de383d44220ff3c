"""Run by llama.cpp's own environment: `python llamacpp_losses.py BASE.gguf ROWS.json OUT.json [Q8_0|Q4_K_M|...]`.

Summed loss in nats of each row's label tokens, of the file as it is or quantised by llama.cpp first. `ROWS.json`: `[[ids, mask], ...]`.
"""

import ctypes
import json
import sys

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np

KINDS = {"Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q4_K_M": 15}
"""`llama_ftype`."""
GGML_TYPE_Q8_0 = 8


def quantised(base: str, kind: str) -> str:
    """The quantised file, beside the first."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = KINDS[kind], 1
    if "_K" not in kind:
        settings.output_tensor_type = GGML_TYPE_Q8_0
    out = base.replace(".gguf", f"-{kind}.gguf")
    assert llama_cpp.llama_model_quantize(base.encode(), out.encode(), ctypes.byref(settings)) == 0
    return out


def row_loss(state, size: int, ids: list[int], mask: list[bool]) -> float:
    """Nats over the row's label tokens."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(state, batch) == 0
    llama_cpp.llama_batch_free(batch)
    total = 0.0
    for i in range(1, len(ids)):
        if mask[i]:
            logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(state, i - 1), (size,)).astype(np.float64)
            top = logits.max()
            total += float(top + np.log(np.exp(logits - top).sum()) - logits[ids[i]])
    return total


def main(base: str, rows: str, out: str, kind: str = "") -> None:
    llama_cpp.llama_backend_init()
    file = quantised(base, kind) if kind else base
    model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    assert model, f"{file} cannot be loaded"
    with open(rows) as stream:
        given = json.load(stream)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64 * (max(len(ids) for ids, _ in given) // 64 + 1)
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # GGML_TYPE_F32
    settings.flash_attn_type = 0
    state = llama_cpp.llama_init_from_model(model, settings)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    with open(out, "w") as stream:
        json.dump([row_loss(state, size, ids, mask) for ids, mask in given], stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
