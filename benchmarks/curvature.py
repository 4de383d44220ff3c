"""Curvature of LoRA's starts on SmolLM2-135M, beside the published divisors of their best learning rates.

`python benchmarks/curvature.py` writes `benchmarks/results/curvature.json`. Real tweets, r 16, all linear layers, each start at its
usual scale and, where B A starts away from 0, the base without it. Divisors: arXiv 2602.04998 (LoRA = 1), Qwen3-0.6B.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path

import torch

from lora_select import models
from lora_select.data.labels import tokenize
from lora_select.data.labels.tokens import collate, label_loss
from lora_select.data.reading import samples
from lora_select.diagnostics.adapter_curvature import adapter_curvature
from lora_select.initialization.linalg import principal_factors
from lora_select.records import AdapterSpec

RESULTS = Path(__file__).parent / "results" / "curvature.json"
DIVISORS = {"lora": 1.0, "pissa": 10.0, "milora": 3.0, "olora": 18.0}
RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--microbatches", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    folder = models.resolve("sample:smollm2-135m-instruct").path
    model = models.load_model(folder)
    batches = microbatches(folder, options.microbatches + 4, options.rows)
    measured, activation = batches[: options.microbatches], batches[options.microbatches :]
    step = forward_and_backward(model, measured[0])
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        starts = {
            "lora": (spec("lora", alpha=32), None),
            "lora at scale 1": (spec("lora", alpha=16), None),
            "eva": (spec("eva", alpha=16), eva(model, activation, Path(temporary))),
            "pissa": (spec("pissa", alpha=16), principal(model, Path(temporary), largest=True)),
            "milora": (spec("milora", alpha=16), principal(model, Path(temporary), largest=False)),
            "olora": (spec("olora", alpha=16, init_lora_weights="olora"), None),
        }
        for (name, (adapter, factors)), (index, batch) in itertools.product(starts.items(), enumerate(measured)):
            started = time.perf_counter()
            found = adapter_curvature(model, adapter, batch, initial_factors=factors, seed=index)
            seconds = time.perf_counter() - started
            rows.append({"start": name, "microbatch": index, "seconds": seconds, **dataclasses.asdict(found)})
            print(rows[-1], flush=True)
    result = {"model": "SmolLM2-135M-Instruct", "rank": RANK, "rows_per_microbatch": options.rows}
    result |= {"seconds_of_forward_and_backward": step, "measurements": rows, "summary": summary(rows)}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=1))


def microbatches(folder: str, count: int, rows: int) -> list[dict[str, torch.Tensor]]:
    tokenizer = models.load_tokenizer(folder)
    found = (tokenize.tokenize(str(i), row, tokenizer, 256).row for i, row in enumerate(samples.tweet_entities()))
    kept = list(itertools.islice((row for row in found if row is not None), count * rows))
    return [collate(kept[i : i + rows], models.pad_id(tokenizer)) for i in range(0, len(kept), rows)]


def forward_and_backward(model, batch) -> float:
    """Seconds of the microbatch's loss and its gradient in the inputs of the first layer (weights frozen), best of three."""
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        label_loss(model, batch)[0].sum().backward()
        best = min(best, time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return best


def spec(name: str, alpha: int, **arguments) -> AdapterSpec:
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return AdapterSpec(
        variant=name,
        targets="all-linear",
        target_modules=targets,
        r=RANK,
        lora_alpha=alpha,
        scale=alpha / RANK,
        init=name,
        learning_rate=0.0,
        peft_class="LoraConfig",
        peft_arguments={"r": RANK, "lora_alpha": alpha, "target_modules": list(targets), **arguments},
        optimizer={},
        num_parameters=0,
    )


def layers(model) -> dict[str, torch.nn.Linear]:
    targets = spec("lora", 16).target_modules
    return {name: module for name, module in model.named_modules() if name.endswith(targets)}


def principal(model, folder: Path, *, largest: bool) -> Path:
    """PiSSA's (largest) or MiLoRA's (smallest singular values) factors at scale 1."""
    factors = {}
    for name, module in layers(model).items():
        weight = module.weight.detach()
        if largest:
            a, b = principal_factors(weight, RANK, 1.0)
        else:
            left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
            root = values[-RANK:].sqrt()
            a, b = (root[:, None] * right[-RANK:]).float(), (left[:, -RANK:] * root).float()
        factors |= {f"{name}.lora_A": a.contiguous(), f"{name}.lora_B": b.contiguous()}
    return save(factors, folder / f"principal-{largest}", subtract=True)


def eva(model, batches, folder: Path) -> Path:
    """EVA: A = the leading directions of each layer's uncentred inputs, orthonormal; B = 0."""
    moments: dict[str, torch.Tensor] = {}
    kept = torch.empty(0)

    def reader(name: str):
        def hook(_module, inputs):
            x = inputs[0][kept]
            moments[name] = moments.get(name, 0) + x.T @ x

        return hook

    hooks = [module.register_forward_pre_hook(reader(name)) for name, module in layers(model).items()]
    with torch.no_grad():
        for batch in batches:
            kept = batch["attention_mask"].bool()
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    factors = {}
    for name, module in layers(model).items():
        vectors = torch.linalg.eigh(moments.pop(name).double())[1][:, -RANK:].flip(1).T.float().contiguous()
        factors |= {f"{name}.lora_A": vectors, f"{name}.lora_B": torch.zeros(module.out_features, RANK)}
    return save(factors, folder / "eva", subtract=False)


def save(factors: dict[str, torch.Tensor], file: Path, *, subtract: bool) -> Path:
    from safetensors.torch import save_file

    save_file(factors, file, metadata={"subtract_from_base": str(subtract).lower()})
    return file


def summary(rows: list[dict]) -> dict[str, dict]:
    """Mean, spread over microbatches and the ratio to LoRA on the same microbatch, beside the published divisor."""
    plain = {row["microbatch"]: row["value"] for row in rows if row["start"] == "lora"}
    found = {}
    for name in dict.fromkeys(row["start"] for row in rows):
        mine = [row for row in rows if row["start"] == name]
        ratios = [row["value"] / plain[row["microbatch"]] for row in mine]
        found[name] = {
            "curvature": sum(row["value"] for row in mine) / len(mine),
            "ratio_to_lora": sum(ratios) / len(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "divisor_of_the_rate": DIVISORS.get(name),
            "products": max(row["products"] for row in mine),
            "relative_error": max(row["error"] / row["value"] for row in mine),
            "seconds": sum(row["seconds"] for row in mine) / len(mine),
            "routes": sorted({row["route"] for row in mine}),
        }
    return found


if __name__ == "__main__":
    main()
