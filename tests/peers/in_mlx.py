"""Run by MLX-LM's own environment: `python in_mlx.py MODEL IDS.json OUT.npy NEW_TOKENS [ADAPTER]`; prints as in_llamacpp does."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model


def main(base, ids, out, new, adapter=None):
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(base))
    if adapter:
        load_adapters(model, adapter)
    model.eval()
    with open(ids) as stream:
        prompts = json.load(stream)
    logits, texts = [], []
    for prompt in prompts:
        logits.append(np.array(model(mx.array([prompt])).astype(mx.float32))[0])
        text = [int(logits[-1][-1].argmax())]
        while len(text) < int(new):
            text.append(int(np.array(model(mx.array([prompt + text])).astype(mx.float32))[0, -1].argmax()))
        texts.append(text)
    np.save(out, np.array(logits, dtype=np.float32))
    with open(out.replace(".npy", ".json"), "w") as stream:
        json.dump(texts, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
