"""The checks of two DeepSpeed ranks over gloo: they train as one process does, and save the whole adapter."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.variants.matrix import NOT_RUN, RANK_CHECKS, REFUSED, WORKS

SECONDS = 240
"""A group of ranks that finishes no variant for so long has hung."""
ODD = 1e-3
"""Share of the trained entries that may be off by more than `WITHIN`."""
WITHIN = 2e-4
"""Largest difference of a trained parameter to the one-process run after three steps of rate 1e-2."""


def examine(
    variants: Sequence[tuple[str, int]], base: str, stage: int, folder: Path
) -> Iterator[tuple[str, dict[str, str]]]:
    """Cells by variant; all variants in one group of ranks while that lives, a new group after one that died.

    Args:
        variants: names and ranks.
        base: how it is held: `fp32`, `nf4` or `int8`.
        stage: of ZeRO.
        folder: for files.
    """
    left = list(variants)
    while left:
        out = folder / f"{base}-zero{stage}-{len(left)}.jsonl"
        job = out.with_suffix(".json")
        told = {"variants": left, "base": base, "stage": stage, "folder": str(folder), "out": str(out)}
        job.write_text(json.dumps(told))
        words = _launch(job, out)
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
        yield from ((line["variant"], line["cells"]) for line in lines)
        left = left[len(lines) :]
        if left:
            name = left.pop(0)[0]
            yield name, {"train": REFUSED + words, "save": NOT_RUN + "it does not train"}


def _launch(job: Path, out: Path) -> str:
    """Run two ranks while variants get done; returns what the group said when it died."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "benchmarks.capability.distributed", str(job)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TQDM_DISABLE": "1"}
    said = job.with_suffix(".log")
    with said.open("w") as log:
        group = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
        done = 0
        while group.poll() is None:
            try:
                group.wait(SECONDS)
            except subprocess.TimeoutExpired:
                before, done = done, len(out.read_text().splitlines()) if out.is_file() else 0
                if done == before:
                    group.terminate()  # the launcher ends its ranks
                    group.wait()
                    return f"the ranks hung for {SECONDS} s"
    errors = [line for line in said.read_text().splitlines() if "Error" in line]
    return (errors[-1].strip() if errors else f"the ranks ended with code {group.returncode}")[:200]


def main(job: Path) -> None:
    """One rank: each variant in turn."""
    from lora_select.training.heartbeat import Heartbeat
    from lora_select.training.job import TrainingJob
    from lora_select.training.worker.process import join

    told = json.loads(job.read_text())
    folder = Path(told["folder"])
    from benchmarks.capability import spectra, tiny

    base = folder / "llama"
    blank = TrainingJob(tiny.blank_spec(), tiny.plan(told["stage"]), str(base), str(base), "", "")
    rank = join(blank, folder, Heartbeat(folder, int(os.environ["RANK"])))
    bench = tiny.Bench("llama", told["base"], base)
    if rank.is_first and not base.is_dir():
        tiny.make("llama", base)
    _barrier()
    tensors = folder / "llama-spectra" / "spectra.safetensors"
    if rank.is_first and not tensors.is_file():
        spectra.record(bench, folder / "llama-spectra")
    _barrier()
    for name, r in told["variants"]:
        cells = _one(rank, name, r, bench, tensors, folder)
        if rank.is_first:
            with Path(told["out"]).open("a") as stream:
                stream.write(json.dumps({"variant": name, "cells": cells}) + "\n")
        _barrier()


def _barrier() -> None:
    import torch.distributed

    torch.distributed.barrier()


def _one(rank: Any, name: str, r: int, bench: Any, tensors: Path, folder: Path) -> dict[str, str]:
    """An exception here is the same on both ranks, or the group ends and the next one goes on."""
    import dataclasses

    import torch

    from benchmarks.capability import checks, tiny
    from lora_select.errors import InputError
    from lora_select.initialization import write_initialization
    from lora_select.training.worker import deepspeed_engine
    from lora_select.variants import named

    variant = named(name, r)
    layers = tiny.layers_of(bench.load(plain=True), "llama")
    ruled_out = variant.violations(checks.asked(variant, bench, layers))
    if ruled_out:
        return dict.fromkeys(RANK_CHECKS, REFUSED + " ".join(ruled_out))
    told = tiny.spec(variant, "llama", layers)
    factors = folder / f"ranks-{bench.base}-{name}.safetensors"
    try:
        mine = factors if rank.is_first else factors.with_suffix(".unused")  # so that a refusal is one of every rank
        write_initialization(told, bench.folder, tensors, mine, bench.quantize)
        _barrier()
        made = str(factors) if factors.is_file() else None
        rank.job = dataclasses.replace(rank.job, spec=told, initial_factors=made, quantized_base=bench.quantize)
        alone = _alone(bench, told, made)
        torch.manual_seed(0)
        rank.engine = deepspeed_engine.build(rank, 0)
        found = _train(rank, bench)
        fault = _differs(alone, found, checks.logits(rank.engine.module, bench), checks.TOLERANCE[bench.base])
        if fault:
            return {"train": REFUSED + fault, "save": NOT_RUN + "it does not train as one process does"}
        return {"train": WORKS, "save": _save(rank, bench, found, factors.with_suffix(f".zero{rank.plan.zero_stage}"))}
    except InputError as error:
        return dict.fromkeys(RANK_CHECKS, REFUSED + checks._words(error))
    except Exception as error:  # PEFT's or DeepSpeed's own words are the finding
        words = f"{type(error).__name__}: {checks._words(error)}"
        return {"train": REFUSED + words, "save": NOT_RUN + "it does not train"}


@final
@dataclass(frozen=True)
class _Alone:
    """What one process makes of the same steps: parameters before and after them, and logits after."""

    start: dict[str, Any]
    end: dict[str, Any]
    logits: Any


def _alone(bench: Any, told: Any, factors: str | None) -> _Alone:
    """The same steps on the whole batch in one process without DeepSpeed."""
    import torch

    from benchmarks.capability import checks, tiny
    from lora_select.training.worker import model
    from lora_select.training.worker.optimizer import make_optimizer

    torch.manual_seed(0)
    network = model.adapt(bench.load(), told, tiny.plan(), str(bench.folder), factors).train()
    start = {n: p.detach().clone() for n, p in checks.trained(network)}
    checks._steps(network, make_optimizer(network, told, tiny.plan()), bench, checks.STEPS)
    end = {n: p.detach().clone() for n, p in checks.trained(network)}
    return _Alone(start, end, checks.logits(network, bench))


def _differs(alone: _Alone, found: dict[str, Any], logits: Any, tolerance: float) -> str | None:
    """How the ranks' result is another than that of one process, or None.

    Where a gradient is rounding, Adam takes its sign: a few entries may then be off, if the function is not.
    """
    from benchmarks.capability import checks

    gaps = {n: (found[n] - alone.end[n]).abs() for n in alone.end}
    if max(float((found[n] - alone.start[n]).abs().max()) for n in alone.end) == 0:
        return "no trained parameter moved"
    worst, off = max(float(gap.max()) for gap in gaps.values()), checks.difference(logits, alone.logits)
    odd = sum(int((~(gap <= WITHIN)).sum()) for gap in gaps.values()) / sum(gap.numel() for gap in gaps.values())
    if worst <= WITHIN or (off <= tolerance and odd <= ODD):
        return None
    return f"two ranks end with a parameter off by {worst:.3g} and a logit off by {off:.3g} from one process"


def _train(rank: Any, bench: Any) -> dict[str, Any]:
    """Each rank takes its row of the batch; whole parameters at the end."""
    from benchmarks.capability import checks
    from lora_select.training.worker import checkpoints

    mine = {name: value[rank.rank : rank.rank + 1] for name, value in bench.batch().items()}
    for _ in range(checks.STEPS):
        rank.engine.backward(rank.engine(**mine).loss)
        rank.engine.step()
    return dict(checkpoints.whole_parameters(rank.engine, rank.plan.zero_stage))


def _save(rank: Any, bench: Any, parameters: dict[str, Any], target: Path) -> str:
    """Saved by rank 0 and loaded on the pristine base: the function of the ranks."""
    from peft import PeftModel

    from benchmarks.capability import checks
    from lora_select.training.worker import model

    wanted = checks.logits(rank.engine.module, bench)
    parameters = parameters | model.frozen_parts(rank.engine.module, rank.plan.zero_stage)
    if not rank.is_first:
        return WORKS
    model.save(rank.engine.module, rank.job, target, parameters)
    off = checks.difference(checks.logits(PeftModel.from_pretrained(bench.load(), str(target)), bench), wanted)
    return WORKS if off <= checks.TOLERANCE[bench.base] else f"{REFUSED}saved and reloaded a logit is off by {off:.3g}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
