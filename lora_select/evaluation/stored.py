"""The adapter merged into its base and stored in fewer bits, beside the base stored so: what is left of the gain."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lora_select import models
from lora_select.evaluation.interval import paired_bootstrap
from lora_select.evaluation.material import EvaluationOptions, Material
from lora_select.evaluation.model_losses import Measured, Progress, measure
from lora_select.records import BaseModel, MetricComparison, StoredGain, sha256_file
from lora_select.records.digests import key_of

BASE, MERGED = "base_", "merged_"
"""Begin the names of the two arms of a form."""


def arms(forms: Sequence[str]) -> list[str]:
    """Names of the arms, in the order in which they are measured.

    >>> arms(["nf4"])
    ['base_nf4', 'merged_nf4']
    """
    return [f"{who}{form}" for form in forms for who in (BASE, MERGED)]


def measure_arms(
    base: BaseModel,
    adapter: Path,
    material: Material,
    options: EvaluationOptions,
    folder: Path,
    report_of: Callable[[str], Progress],
) -> dict[str, Measured]:
    """Every arm of `options.quantized`: the merged model on all of the material, the base on the rows' loss alone.

    Args:
        base: the base model.
        adapter: a PEFT folder.
        material: what is measured on.
        options: `quantized` names the forms.
        folder: where `<arm>.json` goes.
        report_of: who is told of the arm of a name.

    Raises:
        InputError: PEFT cannot merge the adapter.
        RuntimeError: a loss is not finite.
    """
    rows_alone = replace(material, reference=(), questions=())
    measured = {}
    with merged(base, adapter, folder, wanted=bool(options.quantized)) as whole:
        for form in options.quantized:
            held = replace(options, quantize=form)
            for name, model, asked, shown in (
                (f"{BASE}{form}", base, replace(held, tasks=(), task_folder="."), rows_alone),
                (f"{MERGED}{form}", whole, held, material),
            ):
                measured[name] = measure(model, None, shown, asked, folder / f"{name}.json", report_of(name))
    return measured


@contextmanager
def merged(base: BaseModel, adapter: Path, folder: Path, *, wanted: bool) -> Iterator[BaseModel]:
    """The base with the adapter merged into it in float32, as a model of its own while it is needed; the base itself where nothing is wanted.

    Raises:
        InputError: PEFT cannot merge it.
    """
    if not wanted:
        yield base
        return
    digests = [sha256_file(file) for file in sorted(adapter.glob("adapter_*"))]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as place:
        models.write_merged(models.with_adapter(models.load_model(base.path), adapter), base.path, Path(place))
        yield replace(base, path=place, digest=key_of({"base": base.digest, "merged": digests}))


def gains(
    measured: Mapping[str, Measured],
    metrics: Mapping[str, Mapping[str, MetricComparison]],
    labels: Sequence[int],
    *,
    seed: int,
    samples: int,
) -> tuple[StoredGain, ...]:
    """One record a form.

    The share that is left is sum(base - merged) / sum(base - adapter) over the rows' losses, its interval that of the same ratio over
    resampled rows. It is told where the adapter's own gain stands clear of noise: a share of nothing says nothing.

    Args:
        measured: `base`, `adapted` and the arms.
        metrics: the comparison of the adapter (`base`) with each merged arm (`adapted`), by form.
        labels: label tokens of each row.
        seed: of the resampling.
        samples: resamples.
    """
    before, after = measured["base"].losses, measured["adapted"].losses
    gain = [first - second for first, second in zip(before, after, strict=True)]
    *_, (low, _) = paired_bootstrap([0.0] * len(gain), gain, labels, samples=samples, seed=seed)
    found = []
    for form, compared in metrics.items():
        share, interval = None, None
        if low > 0:
            kept = [first - second for first, second in zip(before, measured[f"{MERGED}{form}"].losses, strict=True)]
            _, _, share, interval = paired_bootstrap([0.0] * len(kept), kept, gain, samples=samples, seed=seed)
        stored_base = sum(measured[f"{BASE}{form}"].losses) / sum(labels)
        found.append(StoredGain(form, stored_base, compared, share, interval))
    return tuple(found)
