"""Reachability: what share of a high-rank endpoint's update each candidate could hold at all.

LoRA of rank 64 is trained at its best rate; of its update D of every layer, a candidate of rank r holds the r largest singular directions
(2 r where the start takes B A off the base), on the layers that it targets:

    share = sum over its layers of sum_{i <= r} sigma_i(D)^2 / sum over all layers of ||D||^2

Candidates without a rank, and DoRA with its magnitudes, are left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.selection.case import best_run
from benchmarks.selection.sweep.candidates import NAMED, adapter, candidate
from benchmarks.selection.sweep.table import RESULTS, Run
from lora_select.initialization import changes_base
from lora_select.records import write_text

if TYPE_CHECKING:
    from benchmarks.selection.sweep.runner import Bench

REACH = RESULTS / "reach.json"
ENDPOINT = "lora-all-linear-r64"
LOW_RANK = ("lora", "rslora", "eva", "pissa", "lora_ga")


def keep(bench: "Bench") -> None:
    """Train the endpoint and write every candidate's share into `reach.json`."""
    best = best_run(bench.table, ENDPOINT)
    assert best is not None, f"{ENDPOINT} has no bracketed best rate on {bench.setting.name}; sweep it first"
    energies = endpoint(bench, best)
    layers = bench.spectra.layers
    found = {}
    for key, (name, targets, r) in NAMED.items():
        made = candidate(name, targets, r, layers)
        if made is None or name not in LOW_RANK:
            continue
        held = 2 * r if changes_base(made.variant.initialization) else r
        found[key] = round(held_share(energies, [layer.name for layer in made.layers], held), 5)
    known = json.loads(REACH.read_text(encoding="utf-8")) if REACH.is_file() else {}
    write_text(REACH, json.dumps(known | {bench.setting.name: found}, indent=1, sort_keys=True) + "\n")
    print(bench.setting.name, found, flush=True)


def held_share(energies: Mapping[str, Any], targets: Sequence[str], rank: int) -> float:
    """Share of all layers' energy in the `rank` largest directions of each target.

    Args:
        energies: layer -> squared singular values, falling.
        targets: layers that are adapted.
        rank: of the adapter's update.

    Example:
        >>> import torch
        >>> held_share({"a": torch.tensor([4.0, 2.0]), "b": torch.tensor([3.0, 1.0])}, ["a"], 1)
        0.4
    """
    total = sum(float(values.sum()) for values in energies.values())
    return sum(float(energies[name][:rank].sum()) for name in targets) / total


def endpoint(bench: "Bench", run: Run) -> dict[str, Any]:
    """Squared singular values of the update of every layer, falling."""
    import torch

    from lora_select.training import trials

    made = candidate(*NAMED[ENDPOINT], bench.spectra.layers)
    assert made is not None
    plan = bench.plan(run)
    with trials.adapted(bench.subject.model, adapter(made, run.rate), plan) as network:
        trials.train(network, adapter(made, run.rate), plan, bench.subject.rows.train, bench.subject.pad_id)
        updates = {
            name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
            for name, module in network.named_modules()
            if hasattr(module, "get_delta_weight")
        }
    return {name: torch.linalg.svdvals(update.double()).square() for name, update in updates.items()}


def shares(setting: str, path: Path = REACH) -> dict[str, float]:
    """Share by candidate; nothing where the endpoint was not trained."""
    return (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}).get(setting, {})
