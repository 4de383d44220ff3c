"""From the config to the plain arguments of each stage."""

import math
from typing import Any

from lora_select.config import RunConfig
from lora_select.records import SelectionInputs
from lora_select.records.digests import source_digest
from lora_select.training.planning.plan import Machine


def intake(config: RunConfig) -> dict[str, Any]:
    """What intake reads; the digests stand in the key for the bytes behind the sources."""
    dataset = config.dataset
    options = {
        "source": dataset.source,
        "name": config.name,
        "format": dataset.format,
        "revision": dataset.revision,
        "split": dataset.split,
        "eval_source": dataset.eval_source,
        "eval_fraction": dataset.eval_fraction,
        "max_train_rows": dataset.max_train_rows,
        "max_eval_rows": dataset.max_eval_rows,
        "split_seed": config.dataset.split_seed,
    }
    digests = [source_digest(dataset.source), source_digest(dataset.eval_source or "")]
    return {"options": options, "source_digests": digests}


def profile(config: RunConfig, device: str) -> dict[str, Any]:
    """What the profile measures."""
    return {
        "max_length": config.dataset.max_length,
        "base_loss_rows": config.analysis.base_loss_rows,
        "device": device,
    }


def analyze(config: RunConfig, device: str) -> dict[str, Any]:
    """How large the spectral pass is."""
    analysis = config.analysis
    return {
        "microbatches": analysis.microbatches,
        "microbatch_size": analysis.microbatch_size,
        "sketch_size": analysis.sketch_size,
        "seed": config.seed,
        "device": device,
    }


def constraints(config: RunConfig, train_rows: int) -> SelectionInputs:
    """What the decision must respect."""
    selection, training = config.selection, config.training
    steps = math.ceil(train_rows * training.epochs / training.effective_batch_size)
    return SelectionInputs(
        serve=selection.serve,
        must_merge=selection.must_merge,
        quantized_base=config.base_model.quantize,
        allow_modified_base=selection.allow_modified_base,
        zero_stage=0 if training.zero_stage == "auto" else training.zero_stage,
        r=selection.r,
        variant=selection.variant,
        targets=selection.targets,
        learning_rate=selection.learning_rate,
        planned_steps=min(steps, training.max_steps or steps),
        max_parameters=selection.max_parameters,
        claims=selection.claims,
        race_budget=selection.race_budget,
        prefer_retention=selection.prefer_retention,
    )


def plan(config: RunConfig, machine: Machine) -> dict[str, Any]:
    """What the user said about training and the base's quantisation, and the machine."""
    training = config.training.model_dump(exclude={"device"})
    told = training | {"seed": config.seed, "quantize": config.base_model.quantize}
    return {"training": told, "machine": machine}


def train(config: RunConfig) -> dict[str, Any]:
    """How the base is held while the adapter trains."""
    return {"quantized_base": config.base_model.quantize}


def evaluate(config: RunConfig, device: str) -> dict[str, Any]:
    """What is measured on held-out rows; the champion is looked up in the registry."""
    options = config.evaluation.model_dump(exclude={"compare_plain_lora"})
    return {
        "options": options | {"seed": config.seed, "device": device, "quantize": config.base_model.quantize},
        "model_name": model_name(config),
    }


def promote(config: RunConfig) -> dict[str, Any]:
    """Which registry entry, in which store, and the limit on forgetting."""
    return {
        "model_name": model_name(config),
        "max_forgetting": config.promotion.max_forgetting,
        "tracking_uri": config.tracking.uri,
    }


def model_name(config: RunConfig) -> str:
    """The registered model: the config's own name unless it names one."""
    return config.promotion.model_name or config.name
