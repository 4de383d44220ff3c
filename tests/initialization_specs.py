"""Adapter specifications for tests of starts."""

from lora_select.records import AdapterSpec
from lora_select.variants import named


def spec(name: str, r: int, modules=("q_proj", "down_proj")) -> AdapterSpec:
    variant = named(name, r)
    return AdapterSpec(
        variant=name,
        targets="all-linear",
        target_modules=modules,
        r=r,
        lora_alpha=variant.lora_alpha,
        scale=variant.scale,
        init=variant.initialization,
        learning_rate=1e-4,
        peft_class=variant.peft_class,
        peft_arguments=variant.peft_arguments() | {"target_modules": list(modules), "task_type": "CAUSAL_LM"},
        optimizer=variant.optimizer,
        num_parameters=1,
    )
