"""Train the settings' adapters, each once, and leave them as PEFT folders in a work folder."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plans
from benchmarks.retention.halves import HALVES, half
from benchmarks.retention.settings import ATTENTION, FEED_FORWARD, MIXTURE, SELF_ROWS, Setting, Subject
from lora_select import models
from lora_select.data.labels.tokens import TokenRow, label_loss
from lora_select.data.microbatches import draw
from lora_select.initialization import write_initialization
from lora_select.initialization.portable import make_portable
from lora_select.records import AdapterSpec, BaseModel, TrainingPlan
from lora_select.retention.references import SELF
from lora_select.retention.self_text import sampled
from lora_select.spectral.measuring_pass import analyze
from lora_select.training import trials
from lora_select.variants import CATALOGUE, named

KL_PIECES, CORDA_PIECES = 30, 96
OF_THE_WEIGHTS = ("default", "pissa", "milora", "olora")
"""Starts that no directions have to be measured for."""


def spec_of(setting: Setting, modules: Sequence[str] = ()) -> AdapterSpec:
    """The adapter; `modules` in place of the usual ends of names."""
    variant = named(setting.variant, setting.r)
    modules = modules or (FEED_FORWARD if setting.targets == "mlp-only" else (*ATTENTION, *FEED_FORWARD))
    return variant.spec(
        targets=setting.targets,
        target_modules=tuple(modules),
        learning_rate=setting.rate,
        placed={"target_modules": list(modules), "task_type": "CAUSAL_LM"},
    )


def plan_of(setting: Setting) -> TrainingPlan:
    steps = setting.steps + math.ceil(setting.replay / setting.batch)
    return plans.alone(
        rate=setting.rate, seed=setting.seed, steps=steps, epochs=setting.steps * setting.batch / setting.rows,
        batch=setting.batch, micro=8, packing=True,
    )  # fmt: skip


def train(setting: Setting, subject: Subject, folder: Path) -> None:
    """Train and save; nothing is done where the folder holds an adapter."""
    if (folder / "training.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    modules = half(setting, subject, folder.parent) if setting.targets in HALVES else ()
    spec, plan = spec_of(setting, modules), plan_of(setting)
    factors = folder / "initial_factors.safetensors"
    directions = folder / "spectra.safetensors"
    if spec.init not in OF_THE_WEIGHTS:
        # what is to be kept is the reference's, where a start keeps something
        rows = reference(subject, CORDA_PIECES) if spec.init == "corda_kpm" else subject.train
        _directions(spec, subject.source, rows, models.pad_id(subject.tokenizer), folder)
    start = write_initialization(spec, Path(subject.source.path), directions, factors)
    directions.unlink(missing_ok=True)
    began = time.process_time()
    with trials.adapted(models.load_model(subject.source.path), spec, plan, str(start) if start else None) as network:
        pad_id = models.pad_id(subject.tokenizer)
        if setting.kl:
            losses = _with_divergence(network, plan, subject.train, reference(subject, KL_PIECES), pad_id, setting.kl)
        elif setting.penalty:
            losses = _with_penalty(network, spec, plan, subject, pad_id, setting.penalty)
        else:
            rows = [*subject.train, *reference(subject, setting.replay, setting.replayed)]
            losses = trials.train(network, spec, plan, rows, pad_id)
        seconds = time.process_time() - began
        network.save_pretrained(str(folder))
        make_portable(folder, str(start) if start else None, spec)
    (folder / "training.json").write_text(json.dumps({"losses": losses, "processor_seconds": round(seconds, 1)}))
    print(f"{setting.name}: {len(losses)} steps, {losses[0]:.3f} -> {losses[-1]:.3f}, {seconds:.0f} s", flush=True)


def _directions(spec: AdapterSpec, source: BaseModel, rows: Sequence[TokenRow], pad_id: int, folder: Path) -> None:
    """The measuring pass over `rows`: the directions that starts such as EVA's are made of, in `spectra.safetensors`."""
    analyze(
        models.load_model(source.path),
        draw(rows, microbatches=32, size=max(1, len(rows) // 32), seed=0, pad_id=pad_id),
        loss_fn=label_loss,
        variants=[one for one in CATALOGUE if one.name == spec.variant],
        sketch_size=32,
        seed=0,
        folder=folder,
        dataset_digest="",
        model_digest=source.digest,
    )


def reference(subject: Subject, count: int, names: Sequence[str] = MIXTURE) -> list[TokenRow]:
    """`count` pieces of the kinds `names` in turn, of those that may give moments; `self` is sampled from the base model."""
    from benchmarks.retention.kinds import kinds

    if not count:
        return []
    made: dict[str, Sequence[TokenRow]] = {name: kind.give for name, kind in kinds(subject.tokenizer, count).items()}
    if SELF in names:
        made[SELF] = sampled(
            subject.source, subject.tokenizer, SELF_ROWS, seed=0,
            model=lambda: models.load_model(subject.source.path), cache=models.cache_folder(),
        )  # fmt: skip
    turns = zip(*(made[name] for name in names), strict=False)
    return [row for turn in turns for row in turn][:count]


def _with_divergence(
    network: Any, plan: TrainingPlan, rows: Sequence[TokenRow], pieces: Sequence[TokenRow], pad_id: int, weight: float
) -> list[float]:
    """AdamW on the task's loss and `weight` times KL(base || adapted), a mean over the label tokens of two pieces a step."""
    import torch

    from lora_select.data.labels.tokens import IGNORED, collate
    from lora_select.training.worker import batches
    from lora_select.training.worker.loop import learning_rate

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    made = torch.optim.AdamW(trained, weight_decay=plan.weight_decay)
    losses: list[float] = []

    def logits(chosen: Sequence[TokenRow]) -> tuple[Any, Any]:
        batch = collate(chosen, pad_id)
        targets = batch.pop("labels")[:, 1:]
        wanted = targets.ne(IGNORED)
        return network(**batch, use_cache=False).logits[:, :-1][wanted].float().log_softmax(-1), targets[wanted]

    for step in range(plan.total_steps):
        numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
        kept = [pieces[(2 * step + index) % len(pieces)] for index in range(2)]
        for group in made.param_groups:
            group["lr"] = learning_rate(plan, step)
        found, targets = logits([rows[number] for number in numbers])
        task = -found.gather(-1, targets[:, None]).mean()
        with torch.no_grad(), network.disable_adapter():
            before, _ = logits(kept)
        after, _ = logits(kept)
        (task + weight * (before.exp() * (before - after)).sum(-1).mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm)
        made.step()
        made.zero_grad()
        losses.append(float(task.detach()))
    return losses


def _with_penalty(
    network: Any, spec: AdapterSpec, plan: TrainingPlan, subject: Subject, pad_id: int, weight: float
) -> list[float]:
    """AdamW on the task's loss and `weight` times the mean over layers of tr(D Zr D^T) / tr(W Zr W^T); Zr of the pieces that KL would see."""
    import torch

    from lora_select.data.labels.tokens import collate
    from lora_select.retention import moments
    from lora_select.spectral.linear_layers import linear_layers, plain_weight
    from lora_select.training.worker import batches, optimizer
    from lora_select.training.worker.loop import learning_rate

    base = models.load_model(subject.source.path)
    weights: dict[str, Any] = dict(linear_layers(base))
    given = moments.stream(base, weights, reference(subject, KL_PIECES), pad_id)
    seen = {name: given.of(name).products.float() / given.of(name).tokens for name in given.owner}
    layers = [
        (
            network.get_submodule(f"base_model.model.{name}"),
            seen[name],
            float(((plain_weight(w) @ seen[name]) * plain_weight(w)).sum()),
        )
        for name, w in weights.items()
    ]
    del base, given, weights
    made = optimizer.make_optimizer(network, spec, plan)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    losses: list[float] = []
    for step in range(plan.total_steps):
        numbers = batches.rows_of_step(len(subject.train), plan.epochs, plan.effective_batch_size, plan.seed, step)
        optimizer.set_rate(made, learning_rate(plan, step))
        batch = collate([subject.train[number] for number in numbers], pad_id)
        task = network(**batch, use_cache=False).loss
        parts = []
        for module, zr, whole in layers:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            parts.append(module.scaling["default"] ** 2 * ((a @ zr @ a.T) * (b.T @ b)).sum() / whole)
        (task + weight * torch.stack(parts).mean()).backward()
        torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm)
        made.step()
        made.zero_grad()
        losses.append(float(task.detach()))
    return losses
