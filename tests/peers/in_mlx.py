"""Run by MLX-LM's own environment: `python in_mlx.py MODEL IDS.json OUT.npy NEW_TOKENS [ADAPTER]`; prompts of one length, all in one batch."""

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
        prompts = np.array(json.load(stream))
    logits = np.array(model(mx.array(prompts)).astype(mx.float32))
    said, last = prompts, logits
    for n in range(int(new)):
        said = np.concatenate([said, last[:, -1].argmax(-1)[:, None]], axis=1)
        if n + 1 < int(new):
            last = np.array(model(mx.array(said)).astype(mx.float32))
    np.save(out, logits)
    with open(out.replace(".npy", ".json"), "w") as stream:
        json.dump(said[:, -int(new) :].tolist(), stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
