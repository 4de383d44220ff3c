"""Time and memory of the spectral pass beside what it is compared to: `python -m benchmarks.spectral`.

Parts, each measured side by side in one process and merged into `benchmarks/results/spectral.json`:

* `pass`: every microbatch of the pass is followed by forward + backward of the same microbatch on a twin of the model without hooks.
* `memory`: peaks of a pass and of LoRA steps on the same microbatches, each in a process of its own.
* `exact`: exact singular value decompositions of the weights and of matrices of their gradients' shape, once a shape.
* `peft`: PEFT's own EVA, CorDA and LoRA-GA pre-passes over the same batches, and principal angles to what the pass finds.
* `eva`: input directions of three blocks by PEFT's EVA until it converges, by the pass and exactly, and principal angles between them.
* `null`: signal ranks with real labels, shuffled labels and random signs.
* `tokens`: the pass and its memory at four lengths of a microbatch.

Times are processor seconds of one thread, which other processes do not count into; exponents are least squares in logarithms. Models
come from packages (`benchmarks/models.py`).
"""

import argparse
import copy
import fcntl
import json
import math
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.models import MODELS, gguf
from benchmarks.spectral import eva, null, peers
from benchmarks.spectral.passes import SKETCH, Batches, microbatches, plain, run
from lora_select import models
from lora_select.data.labels.tokens import label_loss
from lora_select.records import write_text
from lora_select.spectral.linear_layers import linear_layers, shape_of
from lora_select.training.worker.loop import peak_memory_gib

RESULTS = Path(__file__).parents[1] / "results" / "spectral.json"
DEFAULT = 32
PARTS = ("pass", "memory", "exact", "peft", "eva", "tokens", "null")
LENGTHS = (128, 256, 512, 1024)
"""Of rows, two a microbatch, for the growth with tokens."""


def side_by_side(model: Any, batches: Batches) -> dict[str, Any]:
    """Every microbatch through the pass and, right after it, through a twin without hooks; then the finish."""
    twin, streamed, bare = copy.deepcopy(model), [], []
    plain(twin, batches[:1])
    plain(model, batches[:1])

    def after(index: int, seconds: float) -> None:
        streamed.append(seconds)
        bare.append(plain(twin, batches[index : index + 1]))

    measured, finish = run(model, batches, after)
    ratio = median(one / other for one, other in zip(streamed, bare, strict=True))
    whole = ratio + finish / sum(bare)
    return {
        "microbatches": len(batches),
        "tokens": measured.tokens,
        "plain_seconds": sum(bare),
        "stream_seconds": sum(streamed),
        "finish_seconds": finish,
        "stream_ratio": ratio,
        "ratio": whole,
        "finish_share": finish / sum(bare) / whole,
    }


def passed(path: str, args: argparse.Namespace) -> dict[str, Any]:
    """Part `pass`."""
    model: Any = models.load_model(path)
    shapes = [shape_of(module) for module in linear_layers(model).values()]
    sizes = {"linear_parameters": sum(m * n for m, n in shapes), "layers": len(shapes)}
    sizes["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    batches = microbatches(path, args.microbatches, args.rows, args.length)
    return sizes | {"rows": args.rows, "length": args.length} | side_by_side(model, batches)


def child_memory(path: str, args: argparse.Namespace) -> None:
    """Print the peak resident memory, GiB, of LoRA steps or of a pass over four microbatches of the same size."""
    model: Any = models.load_model(path)
    batches = microbatches(path, 4, args.rows, args.length)
    if args.child == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
        for batch in batches[:2]:
            nll, _ = label_loss(model, batch)
            nll.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        run(model, batches, lambda _index, _seconds: None)
    print(peak_memory_gib("cpu"))


def memory(name: str, rows: int, length: int) -> dict[str, float]:
    """Part `memory`: peaks of both, each in its own process."""
    found = {what: peak_of(what, name, rows, length) for what in ("lora", "pass")}
    ratio = found["pass"] / found["lora"]
    return {"rows": rows, "length": length, "lora_gib": found["lora"], "pass_gib": found["pass"], "ratio": ratio}


def peak_of(what: str, name: str, rows: int, length: int) -> float:
    """Peak of a process of its own, GiB."""
    command = [sys.executable, "-m", "benchmarks.spectral", "--child", what, "--models", name]
    command += ["--rows", str(rows), "--length", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def tokens(name: str, path: str) -> dict[str, Any]:
    """Part `tokens`: times of four microbatches and memory, by length of their two rows."""
    model, rows = models.load_model(path), []
    for length in LENGTHS:
        timed = side_by_side(model, microbatches(path, 4, 2, length))
        rows.append({"length": length, **timed, "pass_gib": peak_of("pass", name, 2, length)})
        print(rows[-1], flush=True)
    sizes = [float(2 * row["length"]) for row in rows]
    return {
        "by_length": rows,
        "exponents": {
            "plain_seconds": exponent(sizes, [row["plain_seconds"] for row in rows]),
            "stream_seconds": exponent(sizes, [row["stream_seconds"] for row in rows]),
            "pass_gib": exponent(sizes, [row["pass_gib"] for row in rows]),
        },
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent b of value = a size^b by least squares in logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    above = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / math.fsum((a - mean_x) ** 2 for a in x)


def growth(found: dict[str, Any]) -> dict[str, float]:
    """Exponents against the parameters of the measured layers, of what was measured for every model."""
    rows = list(found.values())
    if len(rows) < len(MODELS) or not all("pass" in row for row in rows):
        return {}
    sizes = [row["pass"]["linear_parameters"] for row in rows]
    values = {
        "plain_seconds_per_token": [row["pass"]["plain_seconds"] / row["pass"]["tokens"] for row in rows],
        "stream_seconds_per_token": [row["pass"]["stream_seconds"] / row["pass"]["tokens"] for row in rows],
        "finish_seconds": [row["pass"]["finish_seconds"] for row in rows],
    }
    if all("memory" in row for row in rows):
        values["pass_gib"] = [row["memory"]["pass_gib"] for row in rows]
    return {name: exponent(sizes, column) for name, column in values.items()}


def default_length(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Ratio and finish share of a pass of 32 such microbatches, the default of `lora-select analyze`, from what fewer of them took.

    The finish does not depend on their number.
    """
    rows = {name: parts["pass"] for name, parts in found.items() if "pass" in parts}
    result = {}
    for name, row in rows.items():
        finish = row["finish_seconds"] / (DEFAULT * row["plain_seconds"] / row["microbatches"])
        whole = row["stream_ratio"] + finish
        result[name] = {"ratio": whole, "finish_share": finish / whole}
    return result


def part(what: str, name: str, path: str, args: argparse.Namespace) -> dict[str, Any]:
    """One part of one model."""
    if what == "pass":
        return passed(path, args)
    if what == "memory":
        return memory(name, args.rows, args.length)
    if what == "tokens":
        return tokens(name, path)
    others = {
        "exact": peers.exact,
        "peft": peers.peft,
        "eva": eva.eva,
        "null": null.null,
    }
    return others[what](path, args.rows, args.length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--microbatches", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--child", choices=("lora", "pass"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.models:
        file = gguf(name)
        if file is None:
            print(f"{name}: not installed, left out", flush=True)
            continue
        path = models.resolve(str(file)).path
        if args.child:
            child_memory(path, args)
            return
        for what in args.parts:
            if name != next(iter(MODELS)) and what in ("peft", "eva", "tokens", "null"):
                continue
            found = part(what, name, path, args)
            print(name, what, json.dumps(found, indent=1), flush=True)
            merge(name, what, found)


def merge(name: str, what: str, found: dict[str, Any]) -> None:
    """Put one part beside those that were measured before, each with its machine and versions."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    machine = {"cpu": cpu, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}
    with Path(__file__).open() as lock:  # parts may run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        every = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.is_file() else {}
        every.setdefault(name, {})[what] = found | {"machine": machine}
        ordered = {key: every[key] for key in MODELS if key in every}
        result = {
            "sketch_size": SKETCH,
            "at_32_microbatches": default_length(ordered),
            "exponents_in_parameters": growth(ordered),
            "models": ordered,
        }
        write_text(RESULTS, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
