"""Run by llama.cpp's own environment: `python in_llamacpp.py BASE.gguf IDS.json OUT.npy NEW_TOKENS [ADAPTER.gguf]`.

Logits of every position of every prompt, (prompts, tokens, vocabulary) float32, and greedy continuations in OUT.json.
"""

import ctypes
import json
import sys

import llama_cpp
import numpy as np


def context(model, length):
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = length
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # GGML_TYPE_F32: the default rounds the cache to half
    settings.flash_attn_type = 0
    return llama_cpp.llama_init_from_model(model, settings)


def decode(state, ids, start):
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, start + i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(state, batch) == 0
    llama_cpp.llama_batch_free(batch)


def main(base, ids, out, new, adapter=None):
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(base.encode(), settings)
    assert model, "the base cannot be loaded"
    with open(ids) as stream:
        prompts = json.load(stream)
    state = context(model, 64 * ((max(map(len, prompts)) + int(new)) // 64 + 1))
    if adapter:
        loaded = llama_cpp.llama_adapter_lora_init(model, adapter.encode())
        assert loaded, "the adapter cannot be loaded"
        some = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
        assert llama_cpp.llama_set_adapters_lora(state, some, 1, (ctypes.c_float * 1)(1.0)) == 0
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits, texts = [], []
    for prompt in prompts:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(state), True)
        decode(state, prompt, 0)
        rows = [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(state, i), (size,)).copy() for i in range(len(prompt))
        ]
        logits.append(rows)
        text = [int(rows[-1].argmax())]
        while len(text) < int(new):
            decode(state, text[-1:], len(prompt) + len(text) - 1)
            text.append(int(np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(state, 0), (size,)).argmax()))
        texts.append(text)
    np.save(out, np.array(logits, dtype=np.float32))
    with open(out.replace(".npy", ".json"), "w") as stream:
        json.dump(texts, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
