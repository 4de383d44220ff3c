"""What the spectral pass is compared to: exact decompositions, and PEFT's own EVA, CorDA and LoRA-GA pre-passes.

Each pre-pass runs beside a pass over the same batches; times are processor seconds of one thread. PEFT's settings are its defaults
at r 16, but for EVA's: all tokens and equal ranks, so that the subspaces are of the same thing.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.spectral.passes import SKETCH, Batches, microbatches, run
from lora_select import models
from lora_select.data.labels.tokens import label_loss
from lora_select.initialization.linalg import oriented_factors
from lora_select.spectral.linear_layers import linear_layers, plain_weight, shape_of
from lora_select.spectral.sketch import FoldSketches, Sizes, TestMatrices
from lora_select.spectral.weight import weight_system

RANK = 16
MICROBATCHES = 4
REPEATS = 2
EVA_SECONDS = 150.0
"""After which EVA, which cycles over the batches until it converges, is stopped; its time is then a lower bound."""
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def exact(path: str, _rows: int, _length: int) -> dict[str, Any]:
    """Exact SVDs of one weight a shape, and of a random gradient of that shape, beside our singular systems of the same.

    Ours of the gradient comes from sketches of four folds; forming gradients or sketches is not counted on either side.
    """
    modules = linear_layers(models.load_model(path))
    counts = Counter(shape_of(module) for module in modules.values())
    rows, tests = [], TestMatrices(Sizes(SKETCH), 0)
    for shape, count in counts.items():
        module = next(module for module in modules.values() if shape_of(module) == shape)
        weight, gradients = plain_weight(module).float(), torch.randn(4, *shape)
        side, psi = tests.input_side(shape[1], weight.device), tests.output_side(shape[0], weight.device)
        sketches = FoldSketches(gradients @ side.omega, gradients.mT @ psi, side, psi)
        found = {
            "exact_weight": fastest(lambda w=weight: torch.linalg.svd(w, full_matrices=False)),
            "exact_gradient": fastest(lambda g=gradients: torch.linalg.svd(g.sum(0), full_matrices=False)),
            "ours_weight": fastest(lambda w=weight: weight_system(w, SKETCH, 0)),
            "ours_gradient": fastest(lambda s=sketches: s.reconstruct(SKETCH)),
        }
        values, ours = torch.linalg.svdvals(weight)[:SKETCH], weight_system(weight, SKETCH, 0)
        worst = float(((values - ours.values).abs() / values[0]).max())
        rows.append({"shape": list(shape), "layers": count, **found, "residual": ours.residual, "worst_error": worst})
    exact_seconds = sum(row["layers"] * (row["exact_weight"] + row["exact_gradient"]) for row in rows)
    seconds = sum(row["layers"] * (row["ours_weight"] + row["ours_gradient"]) for row in rows)
    return {"shapes": rows, "exact_seconds": exact_seconds, "seconds": seconds, "times": exact_seconds / seconds}


def fastest(work: Callable[[], object]) -> float:
    """Processor seconds, the better of two."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def peft(path: str, rows: int, length: int) -> dict[str, Any]:
    """All three pre-passes beside one pass over the same batches."""
    batches, parts, seconds = ours(path, rows, length)
    found = {"microbatches": MICROBATCHES, "rows": rows, "length": length, "pass_seconds": seconds}
    for name, pre_pass in (("loraga", loraga), ("corda", corda), ("eva", eva)):
        found[name] = pre_pass(models.load_model(path), batches, parts)
        print(name, found[name], flush=True)
    total = sum(found[name]["seconds"] for name in ("loraga", "corda", "eva"))
    return found | {"peft_seconds": total, "times": total / seconds}


def eva(model: Any, batches: Batches, parts: dict[str, Tensor]) -> dict[str, Any]:
    """PEFT's EVA until it converges, cycling over the batches; angles between its input directions and ours."""
    from peft import EvaConfig, LoraConfig, get_peft_model, initialize_lora_eva_weights

    config = LoraConfig(
        r=RANK,
        target_modules=list(KINDS),
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, use_label_mask=False),  # pyright: ignore[reportArgumentType]
    )
    adapted: Any = get_peft_model(model, config, low_cpu_mem_usage=True)
    began, seen = time.process_time(), []

    def forward(wrapped: Any, batch: dict[str, Tensor]) -> None:
        if time.process_time() - began > EVA_SECONDS:
            raise TimeoutError
        seen.append(None)
        wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=1)

    try:
        initialize_lora_eva_weights(adapted, batches, forward_fn=forward, show_progress_bar=False)
    except TimeoutError:
        return {"seconds": time.process_time() - began, "batches": len(seen), "converged": False}
    took = time.process_time() - began
    pairs = {
        name: (adapted.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.T, vectors[:, :RANK])
        for name, vectors in of(parts, "activation_vectors").items()
    }
    return {"seconds": took, "batches": len(seen), "converged": True, "inputs": agreement(pairs)}


def corda(model: Any, batches: Batches, parts: dict[str, Tensor]) -> dict[str, Any]:
    """PEFT's CorDA, row by row, which is all its hook can take; angles between the left and right directions of W C."""
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    config = LoraConfig(
        r=RANK, target_modules=list(KINDS), init_lora_weights="corda", corda_config=CordaConfig(corda_method="ipm")
    )

    def forward() -> None:
        for batch in batches:
            for row in range(len(batch["input_ids"])):
                model(
                    input_ids=batch["input_ids"][row : row + 1],
                    attention_mask=batch["attention_mask"][row : row + 1],
                    use_cache=False,
                    logits_to_keep=1,
                )

    began = time.process_time()
    preprocess_corda(model, config, run_model=forward)
    took = time.process_time() - began
    values, left = of(parts, "activation_values"), {}
    for name, vectors in of(parts, "activation_vectors").items():
        module: Any = model.get_submodule(name)
        _, b = oriented_factors(module.weight, vectors, values[name], RANK, 1.0, smallest=False)
        left[name] = (module.eigens.U_WC, b)
    return {"seconds": took, "outputs": agreement(left)}


def loraga(model: Any, batches: Batches, parts: dict[str, Tensor]) -> dict[str, Any]:
    """PEFT's LoRA-GA, gradients and its decomposition of them; angles to the exact leading directions, of both."""
    from peft import LoraConfig
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    config = LoraConfig(
        r=RANK,
        target_modules=list(KINDS),
        init_lora_weights="lora_ga",  # pyright: ignore[reportArgumentType]
        lora_ga_config=LoraGAConfig(),
    )

    def train_step() -> None:
        for batch in batches:
            nll, _ = label_loss(model, batch)
            nll.sum().backward()

    began = time.process_time()
    preprocess_loraga(model, config, train_step)
    modules: dict[str, Any] = dict(linear_layers(model))
    found = {
        name: torch.svd_lowrank(module._peft_loraga_grad, q=min(4 * RANK, *module.weight.shape), niter=4)
        for name, module in modules.items()
    }
    took = time.process_time() - began
    lefts, rights = of(parts, "gradient_left"), of(parts, "gradient_right")
    return {
        "seconds": took,
        "outputs": agreement({name: (found[name][0][:, :8], lefts[name][:, :8]) for name in modules}),
        "inputs": agreement({name: (found[name][2][:, :8], rights[name][:, :8]) for name in modules}),
        "captured": captured(modules, found, lefts, rights),
    }


def captured(modules: dict[str, Any], theirs: Any, lefts: dict[str, Tensor], rights: dict[str, Tensor]) -> float:
    """Median over layers of ||U^T G V||^2 of our 8 leading directions over theirs."""
    shares = []
    for name, module in modules.items():
        gradient = module._peft_loraga_grad
        own = (lefts[name][:, :8].T @ gradient @ rights[name][:, :8]).square().sum()
        shares.append(float(own / theirs[name][1][:8].square().sum()))
    return float(torch.tensor(shares).median())


def ours(path: str, rows: int, length: int) -> tuple[Batches, dict[str, Tensor], float]:
    """The batches, what the pass found, and its processor seconds."""
    model: Any = models.load_model(path)
    batches, took = microbatches(path, MICROBATCHES, rows, length), []
    measured, finish = run(model, batches, lambda _index, seconds: took.append(seconds))
    return batches, dict(measured.tensors), sum(took) + finish


def of(parts: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """One kind of tensor by layer."""
    return {name.removesuffix(f".{what}"): tensor for name, tensor in parts.items() if name.endswith(f".{what}")}


def agreement(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Principal angles in degrees between two subspaces of each layer: medians over layers of the smallest, median and largest."""
    angles = []
    for one, other in pairs.values():
        a, b = torch.linalg.qr(one.detach().double())[0], torch.linalg.qr(other.detach().double())[0]
        angles.append(torch.rad2deg(torch.arccos(torch.linalg.svdvals(a.T @ b).clamp(max=1.0))))
    stacked = torch.stack(angles)
    middle = {
        "smallest": stacked.min(1).values,
        "median": stacked.median(1).values,
        "largest": stacked.max(1).values,
        "mean_squared_cosine": torch.deg2rad(stacked).cos().square().mean(1),
    }
    return {name: float(column.median()) for name, column in middle.items()}
