"""The checks of one process, each by its effect: parameters, logits, files. A check returns `works` or says what happened."""

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.capability import tiny
from benchmarks.capability.tiny import Bench
from lora_select.errors import InputError
from lora_select.export.plain_lora import write_lora
from lora_select.initialization import write_initialization
from lora_select.initialization.portable import make_portable, subtracts
from lora_select.records import AdapterSpec
from lora_select.training.worker import model as training_model
from lora_select.training.worker.optimizer import make_optimizer
from lora_select.variants.base import Variant
from lora_select.variants.matrix import CHECKS, NOT_RUN, REFUSED, WORKS

STEPS = 3
TOLERANCE = {"fp32": 1e-3, "bf16": 0.15, "nf4": 2e-3, "int8": 0.06}
"""Largest difference of a logit that counts as equal; logits here are of order 1 to 10. int8 rounds inputs anew each time."""
EXPORT_ERROR = 1e-2
"""||dW - B A|| / ||dW|| up to which an export to plain LoRA counts."""


class EffectError(Exception):
    """A check found an effect that must not be."""


@final
@dataclass(frozen=True)
class Trial:
    """A variant in a setting: what to build and where its files go."""

    variant: Variant
    bench: Bench
    spec: AdapterSpec
    factors: str | None
    folder: Path

    @property
    def tolerance(self) -> float:
        """Of logits in this setting."""
        return TOLERANCE[self.bench.base]

    def build(self) -> Any:
        """The adapted model at its start, as the worker builds it."""
        import torch

        torch.manual_seed(0)
        held = self.bench
        if self.factors and subtracts(self.factors) and held.base == "bf16":
            held = Bench(held.architecture, "fp32", held.folder)  # the worker keeps a changed base in fp32
        return training_model.adapt(held.load(), self.spec, tiny.plan(), str(held.folder), self.factors).train()


def examine(variant: Variant, bench: Bench, tensors: Path, folder: Path) -> dict[str, str]:
    """Every check of a variant in a setting: cells by check name."""
    layers = tiny.layers_of(bench.load(plain=True), bench.architecture)
    ruled_out = variant.violations(asked(variant, bench, layers))
    if ruled_out:
        return dict.fromkeys(CHECKS, REFUSED + " ".join(ruled_out))
    told = tiny.spec(variant, bench.architecture, layers)
    try:
        factors = _start(told, bench, tensors, folder)
    except InputError as error:
        return dict.fromkeys(CHECKS, REFUSED + _words(error))
    trial = Trial(variant, bench, told, factors, folder)
    cells: dict[str, str] = {}
    state: dict[str, Any] = {}
    for check in CHECKS:
        if check != "train" and cells["train"] != WORKS:
            cells[check] = NOT_RUN + "it does not train"
        elif check not in {"train", "resume", "reload"} and cells["reload"] != WORKS:
            cells[check] = NOT_RUN + "it does not reload"
        else:
            cells[check] = _attempt(_CHECKS[check], trial, state)
    return cells


def asked(variant: Variant, bench: Bench, layers: tuple[tuple[str, int, int], ...]) -> Any:
    """What to ask the variant's own rules: of quantisation only where the start itself depends on it."""
    import dataclasses

    asked = tiny.context(layers)
    return dataclasses.replace(asked, quantized_base=bench.quantize) if variant.initialization != "default" else asked


def _start(told: AdapterSpec, bench: Bench, tensors: Path, folder: Path) -> str | None:
    out = folder / "start.safetensors"
    made = write_initialization(told, bench.folder, tensors, out, bench.quantize)
    return str(made) if made else None


def _attempt(check: Any, trial: Trial, state: dict[str, Any]) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(trial, state)
    except EffectError as fault:
        return REFUSED + str(fault)
    except Exception as error:  # PEFT's own words are the finding
        return REFUSED + f"{type(error).__name__}: {_words(error)}"
    return WORKS


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or "without a message"


def _train(trial: Trial, state: dict[str, Any]) -> None:
    model, variant = trial.build(), trial.variant
    pristine = logits(trial.bench.load(), trial.bench)
    at_start = logits(model, trial.bench)
    optimizer = make_optimizer(model, trial.spec, tiny.plan())  # LoRA-FA's is what freezes A
    named = dict(trained(model))
    if not named:
        raise EffectError("no parameter is trained")
    containers = {part.partition(".")[0] for part in variant.trained}
    strays = sorted(n for n in named if not any(part in n for part in containers))
    if strays:
        raise EffectError(f"parameters that are not the variant's are trained: {', '.join(strays[:3])}")
    count = sum(p.numel() for p in named.values())
    expected = trial.spec.num_parameters + variant.shared_parameters
    if count != expected:
        raise EffectError(f"{count} parameters are trained, the count says {expected}")
    if any(p.dtype.itemsize < 4 for p in named.values()):
        raise EffectError("adapter parameters are not in fp32")
    moved = difference(at_start, pristine)
    if variant.starts_at_base and trial.spec.init not in {"lora_one", "loftq"} and moved > trial.tolerance:
        raise EffectError(f"the start changes a logit by {moved:.3g}")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = {n: p.detach().clone() for n, p in named.items()}
    state["checkpoint"] = _steps(model, optimizer, trial.bench, STEPS, keep_at=STEPS - 1)
    if any(not p.isfinite().all() for p in named.values()):
        raise EffectError("a parameter is NaN or infinite after three steps")
    still = [n for n, p in named.items() if bool((p == before[n]).all())]
    if len(still) == len(named):
        raise EffectError("no trained parameter moved")
    changed = [n for n, p in model.named_parameters() if n in frozen and not bool((p == frozen[n]).all())]
    if changed:
        raise EffectError(f"training changed frozen parameters: {', '.join(changed[:2])}")
    state["logits"] = logits(model, trial.bench)
    state["parameters"] = {n: p.detach().clone() for n, p in named.items()}
    if difference(state["logits"], at_start) <= 1e-6:
        raise EffectError("three steps do not change the function")
    target = trial.folder / "adapter"
    model.save_pretrained(str(target))
    make_portable(target, trial.factors, trial.spec)


def _steps(model: Any, optimizer: Any, bench: Bench, count: int, *, keep_at: int | None = None) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for step in range(count):
        if step == keep_at:
            parameters = {n: p.detach().clone() for n, p in trained(model)}
            kept = {"parameters": parameters, "optimizer": copy.deepcopy(optimizer.state_dict())}
        model(**bench.batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return kept


def _resume(trial: Trial, state: dict[str, Any]) -> None:
    """A new model takes up parameters and optimizer before the last step, and ends where the unbroken run did."""
    import torch

    model = trial.build()
    optimizer = make_optimizer(model, trial.spec, tiny.plan())
    kept = state["checkpoint"]
    with torch.no_grad():
        for name, parameter in trained(model):
            parameter.copy_(kept["parameters"][name])
    optimizer.load_state_dict(kept["optimizer"])
    _steps(model, optimizer, trial.bench, 1)
    worst = max(difference(p.detach(), state["parameters"][n]) for n, p in trained(model))
    if worst > 1e-5:
        raise EffectError(f"a resumed run ends with a parameter off by {worst:.3g}")


def _reload(trial: Trial, state: dict[str, Any]) -> None:
    state["reloaded"] = _loaded(trial, trial.bench.load())
    off = difference(logits(state["reloaded"], trial.bench), state["logits"])
    if not off <= trial.tolerance:
        raise EffectError(f"reloaded on the pristine base a logit is off by {off:.3g}")


def _loaded(trial: Trial, base: Any) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base, str(trial.folder / "adapter")).eval()


def _unmerge(trial: Trial, state: dict[str, Any]) -> None:
    model = state["reloaded"]
    model.merge_adapter()
    model.unmerge_adapter()
    off = difference(logits(model, trial.bench), state["logits"])
    state["reloaded"] = _loaded(trial, trial.bench.load())
    if not off <= trial.tolerance:
        raise EffectError(f"after merging and unmerging a logit is off by {off:.3g}")


def _merge(trial: Trial, state: dict[str, Any]) -> None:
    merged = _loaded(trial, trial.bench.load()).merge_and_unload()
    off = difference(logits(merged, trial.bench), state["logits"])
    if not off <= trial.tolerance:
        raise EffectError(f"merging changes a logit by {off:.3g}")


def _mix(trial: Trial, state: dict[str, Any]) -> None:
    """Two rows of one batch, one with the adapter and one with the base alone."""
    import torch

    model, bench = state["reloaded"], trial.bench
    batch = {k: v for k, v in bench.batch().items() if k != "labels"}
    with torch.no_grad():
        mixed = model(**batch, adapter_names=["default", "__base__"]).logits.float()
    pristine = logits(bench.load(), bench)
    if difference(mixed[1], pristine[1]) > trial.tolerance:
        ignored = difference(mixed[1], state["logits"][1]) <= trial.tolerance
        raise EffectError(
            "adapter_names is ignored: every row gets the adapter" if ignored else "the base's row is not the base's"
        )
    if difference(mixed[0], state["logits"][0]) > trial.tolerance:
        raise EffectError("the adapter's row is not the adapter's")


def _export(trial: Trial, state: dict[str, Any]) -> None:
    """To plain LoRA, loaded by plain PEFT on the pristine fp32 base: the function of the adapter there."""
    from peft import PeftModel

    bench = Bench(trial.bench.architecture, "fp32", trial.bench.folder)
    native = _loaded(trial, bench.load())
    wanted = logits(native, bench)
    out = trial.folder / "plain"
    try:
        made = write_lora(native, out, str(bench.folder), rank=None, max_error=EXPORT_ERROR, task_type=None)
    except InputError as error:
        raise EffectError(str(error)) from error
    full = min(min(m, n) for _, m, n in tiny.layers_of(bench.load(), bench.architecture))
    off = difference(logits(PeftModel.from_pretrained(bench.load(), str(out)).eval(), bench), wanted)
    moved = difference(wanted, logits(bench.load(), bench))
    if off > max(1e-4, 5 * EXPORT_ERROR * moved):
        raise EffectError(f"the export's logits differ by {off:.3g}")
    if made.rank >= full and made.rank > max(1, trial.spec.r) * trial.variant.export_rank_factor:
        raise EffectError(f"the update has full rank: plain LoRA would need rank {made.rank}; export it merged")


_CHECKS = {
    "train": _train,
    "resume": _resume,
    "reload": _reload,
    "merge": _merge,
    "unmerge": _unmerge,
    "mix": _mix,
    "export": _export,
}


def trained(model: Any) -> list[tuple[str, Any]]:
    """Trained parameters by name."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def logits(model: Any, bench: Bench) -> Any:
    """Logits on the setting's batch, float32, without dropout."""
    import torch

    training = model.training
    model.eval()
    with torch.no_grad():
        found = model(**{k: v for k, v in bench.batch().items() if k != "labels"}).logits.float()
    model.train(training)
    return found


def difference(a: Any, b: Any) -> float:
    """Largest absolute difference; infinite where one is not finite."""
    off = (a.float() - b.float()).abs().max()
    return float(off) if bool(off.isfinite()) else float("inf")
