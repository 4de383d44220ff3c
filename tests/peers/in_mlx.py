"""Run by MLX-LM's own environment: `python in_mlx.py MODEL IDS.json OUT.npy NEW_TOKENS [ADAPTER]`; prompts of one length, all in one batch."""

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
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
    cache = make_prompt_cache(model)
    logits = np.array(model(mx.array(prompts), cache=cache).astype(mx.float32))
    said = [logits[:, -1].argmax(-1)]
    while len(said) < int(new):
        last = np.array(model(mx.array(said[-1][:, None]), cache=cache).astype(mx.float32))
        said.append(last[:, -1].argmax(-1))
    np.save(out, logits)
    with open(out.replace(".npy", ".json"), "w") as stream:
        json.dump(np.array(said).T.tolist(), stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
