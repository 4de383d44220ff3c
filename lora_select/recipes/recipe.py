"""What every tool is told, and what a tool answers."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select.recipes import afterwards
from lora_select.recipes.rows import Pieces, Rows, write_lines
from lora_select.records import AdapterSpec, BaseModel, TrainingPlan, write_text

if TYPE_CHECKING:
    from lora_select.retention.settings import RetentionSettings

START = "start"
"""The folder, inside a tool's, that holds the adapter at its start."""


@final
@dataclass(frozen=True)
class Order:
    """One training, as some tool should do it.

    `start` is a PEFT folder with the adapter at its start (None where the tool's own start is the same). `quantize` is None,
    `nf4` or `int8`; `serve` None or a name in `serving.ENGINES`; `max_length` in tokens. `retention` is how the filter is set
    after the training, None where it is off.
    """

    spec: AdapterSpec
    base: BaseModel
    plan: TrainingPlan
    rows: Rows
    quantize: str | None
    serve: str | None
    max_length: int
    start: Path | None
    retention: "RetentionSettings | None" = None

    @property
    def is_local(self) -> bool:
        """Whether the model is named by its place on this machine."""
        return not is_hub_id(self.base)

    @property
    def model(self) -> str:
        """What the tool loads: the hub id as it was given, or the local folder."""
        return self.base.path if self.is_local else self.base.source

    @property
    def looked_at(self) -> str:
        """The rows that are looked at while training: `validation`, kept from it, or `eval` where the plan keeps none."""
        return "validation" if self.rows.validation else "eval"


@final
@dataclass(frozen=True)
class Written:
    """What a tool's folder is used by: the command, run inside it, and what a person should know."""

    command: str
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Tool:
    """A tool that trains adapters.

    `cannot` says in sentences what of an adapter it cannot express (spec, serve); `write` fills a folder.
    """

    name: str
    cannot: Callable[[AdapterSpec, str | None], tuple[str, ...]]
    write: Callable[[Order, Path], Written]
    cuts_rows: bool = True
    """Whether it cuts a row at the maximum length as the measurement did: from its end."""


def hand_over(order: Order, folder: Path, shape: Callable[[Pieces], Any]) -> None:
    """The start, where there is one, and `train.jsonl` and `eval.jsonl`, each row in the tool's shape."""
    if order.start is not None:
        shutil.copytree(order.start, folder / START)
    for name, rows in parts(order.rows).items():
        write_lines(folder / f"{name}.jsonl", [shape(row) for row in rows])
    if not order.rows.validation:
        (folder / "validation.jsonl").unlink(missing_ok=True)
    afterwards.hand_over(order.rows, order.retention, {"base": order.model, "max_length": order.max_length}, folder)


def parts(rows: Rows) -> dict[str, tuple[Pieces, ...]]:
    """The rows by the name of their file: learnt, looked at while training (where the plan keeps some), and judging."""
    found = {"train": rows.train, "validation": rows.validation, "eval": rows.eval}
    return {name: rows for name, rows in found.items() if rows or name != "validation"}


def training_arguments(order: Order) -> dict[str, Any]:
    """What every tool that is built on `transformers.TrainingArguments` is told under the same names."""
    start = {"eval_on_start": True} if order.rows.validation else {}
    return {"packing": False, **common_arguments(order.spec, order.plan), **looks(order), **start}


def looks(order: Order) -> dict[str, Any]:
    """How often rows that are kept from training are looked at, and that they choose the checkpoint; nothing where none are kept."""
    if not order.rows.validation:
        return {}
    every = order.plan.validation_every
    return {
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": order.plan.keep_checkpoints,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def common_arguments(spec: AdapterSpec, plan: TrainingPlan) -> dict[str, Any]:
    """Keywords of `transformers.TrainingArguments`."""
    return {
        "output_dir": "output",
        "learning_rate": spec.learning_rate,
        "num_train_epochs": plan.epochs,
        "per_device_train_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "lr_scheduler_type": plan.lr_schedule,
        "warmup_steps": plan.warmup_steps,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "optim": "adamw_torch",
        "bf16": plan.precision == "bf16",
        "seed": plan.seed,
        "eval_strategy": "epoch",
        "per_device_eval_batch_size": plan.micro_batch_size,
        "save_strategy": "epoch",
        "logging_steps": 1,
        "report_to": "none",
        **({"use_cpu": True} if plan.device == "cpu" else {}),
    }


def lora_arguments(spec: AdapterSpec) -> dict[str, Any]:
    """The adapter as LLaMA-Factory and ms-swift call its parts, but for where it is placed."""
    return {
        "lora_rank": spec.r,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": 0.0,
        "use_rslora": bool(spec.peft_arguments.get("use_rslora", False)),
        "use_dora": bool(spec.peft_arguments.get("use_dora", False)),
    }


def write_yaml(path: Path, values: Mapping[str, Any], head: str) -> None:
    """A YAML file in the order of `values`, under a comment."""
    import yaml

    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=1000)
    write_text(path, "".join(f"# {line}\n" for line in head.splitlines()) + text)


def headline(order: Order, tool: str) -> str:
    """What a person reads first in a written file."""
    spec, plan = order.spec, order.plan
    return (
        f"{tool}: {spec.variant} on {spec.targets}, {spec.num_parameters:,} trainable parameters, learning rate {spec.learning_rate:g}.\n"
        f"Written by lora-select. One process: with N of them divide gradient_accumulation_steps by N, so that a step keeps its "
        f"{plan.effective_batch_size} rows."
    )


def is_hub_id(base: BaseModel) -> bool:
    """Whether the base was named by its id on the hub, so that a trainer elsewhere finds it under the same name."""
    return not base.source.startswith("sample:") and not Path(base.source).exists()
