"""`lora-select analyze`: the spectral pass by itself, on any model and data, with a table and figures."""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

from lora_select import models, records
from lora_select.data import intake as intake_library
from lora_select.data import microbatches
from lora_select.data.tokenize import tokenize
from lora_select.data.tokens import TokenRow
from lora_select.diagnostics import costs as adapter_costs
from lora_select.errors import InputError
from lora_select.records import AdapterCosts, BaseModel, LayerSpectra, QuantisationError, Spectra

if TYPE_CHECKING:
    from lora_select.diagnostics.quantisation import Kind

Progress = Callable[[int, int, str], None]
CLEAR = 2.0


@final
@dataclass(frozen=True)
class Request:
    """What to analyze: sources as in a run's config, the size of the pass, and the folder that gets record and figures.

    `curvature` and `quantize` ask for more than the pass: see :mod:`lora_select.diagnostics.costs`.
    """

    model: str
    data: str
    out: Path
    microbatches: int
    microbatch_size: int
    sketch_size: int
    max_length: int
    seed: int
    curvature: bool = False
    quantize: "Kind | None" = None


@final
@dataclass(frozen=True)
class Size:
    """How large the pass is: `microbatches` of `rows` rows, sketches of `sketch` columns, and the seed of both."""

    microbatches: int
    rows: int
    sketch: int
    seed: int


def run(request: Request, progress: Progress | None = None) -> Spectra:
    """Read, tokenise, measure; writes `spectra.json`, `spectra.safetensors`, `signal-ranks.png` and `spectrum.png`.

    Raises:
        InputError: the model or data cannot be used, or holds nothing to measure.
    """
    from lora_select.report import plots

    base = models.resolve(request.model)
    digest, rows = _rows(request, base)
    request.out.mkdir(parents=True, exist_ok=True)
    spectra = measure(rows, base, dataset_digest=digest, size=_size(request), folder=request.out, progress=progress)
    records.write(request.out / "spectra.json", spectra)
    plots.signal_ranks(spectra, request.out / "signal-ranks.png")
    plots.spectrum(spectra, request.out / "spectrum.png")
    return spectra


def measure(
    rows: Sequence[TokenRow],
    base: BaseModel,
    *,
    dataset_digest: str,
    size: Size,
    folder: Path,
    progress: Progress | None = None,
) -> Spectra:
    """The spectral pass over microbatches drawn from `rows`, on this machine; writes `spectra.safetensors` into `folder`.

    Raises:
        InputError: the rows do not fill four microbatches, or there is nothing to measure.
    """
    from lora_select.data.tokens import label_loss
    from lora_select.spectral.analyze import analyze
    from lora_select.training.planning.plan import detect_machine
    from lora_select.variants import CATALOGUE

    return analyze(
        models.load_model(base.path, dtype="float32", device=detect_machine().device),
        _drawn(rows, base, size),
        loss_fn=label_loss,
        variants=CATALOGUE,
        sketch_size=size.sketch,
        seed=size.seed,
        folder=folder,
        dataset_digest=dataset_digest,
        model_digest=base.digest,
        progress=progress,
    )


def costs(request: Request, spectra: Spectra, progress: Progress | None = None) -> AdapterCosts | None:
    """What was asked for beyond the pass, None where nothing was; writes `costs.json`."""
    if not request.curvature and request.quantize is None:
        return None
    base = models.resolve(request.model)
    _, rows = _rows(request, base)
    found = adapter_costs.measure(
        spectra,
        request.out,
        Path(base.path),
        _drawn(rows, base, _size(request))[0],
        curvature=request.curvature,
        quantize=request.quantize,
        progress=progress,
    )
    records.write(request.out / "costs.json", found)
    return found


def _size(request: Request) -> Size:
    return Size(request.microbatches, request.microbatch_size, request.sketch_size, request.seed)


def _drawn(rows: Sequence[TokenRow], base: BaseModel, size: Size):
    pad_id = models.pad_id(models.load_tokenizer(base.path))
    return microbatches.draw(rows, microbatches=size.microbatches, size=size.rows, seed=size.seed, pad_id=pad_id)


def _rows(request: Request, base: BaseModel) -> tuple[str, list[TokenRow]]:
    with tempfile.TemporaryDirectory() as folder:
        dataset = intake_library.intake(source=request.data, name="analyze", folder=Path(folder))
        rows = list(intake_library.read_canonical(Path(folder) / dataset.train_file.path))
    tokenizer = models.load_tokenizer(base.path)
    needed = request.microbatches * request.microbatch_size
    tokenized = [tokenize(row_id, row, tokenizer, request.max_length) for row_id, row in rows[: 4 * needed]]
    kept = [text for row in tokenized for text in row.rows]
    if not kept:
        raise InputError(
            f"none of the {len(tokenized)} rows has a label within {request.max_length} tokens"
            + next(
                (f"; the first cannot be learnt: {row.fault}" for row in tokenized if row.fault), "; raise --max-length"
            )
        )
    return dataset.digest, kept


def print_table(spectra: Spectra, measured: AdapterCosts | None = None) -> None:
    """One line a layer, most signal first within its block, and what the columns mean."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    quantised = {} if measured is None else measured.quantisation
    more = (f"{next(iter(quantised.values())).kind} error", "in 16") if quantised else ()
    for name in (
        "shape",
        "signal ± SE",
        "noise scale",
        "signal rank",
        "stable rank of W",
        "input var. in 8",
        "|G| where |W|",
        *more,
    ):
        table.add_column(name, justify="right", no_wrap=True)
    label_tokens = spectra.label_tokens / spectra.microbatches
    for layer in sorted(spectra.layers, key=_place):
        table.add_row(*_row(layer, label_tokens), *_quantised(layer, quantised))
    console = Console(width=None if Console().is_terminal else 160, highlight=False)
    console.print(table)
    for line in [*summary(spectra), *([] if measured is None else adapter_costs.sentences(measured))]:
        console.print(line, soft_wrap=True)


def _place(layer: LayerSpectra) -> tuple[list[int], float]:
    """Where a layer stands in the table: block 2 before block 10, and within a block most signal first."""
    return [int(number) for number in re.findall(r"\.(\d+)", layer.name)], -layer.signal_energy


def _row(layer: LayerSpectra, label_tokens: float) -> Sequence[str]:
    clear = layer.signal_energy > CLEAR * layer.signal_energy_se
    scale = f"{label_tokens * layer.noise_energy / layer.signal_energy:,.0f}" if clear else "-"
    top = "≥ " if layer.signal_rank == len(layer.heldout_values) else ""
    explained = sum(layer.activation_values[:8]) / layer.activation_variance if layer.activation_variance else 0.0
    return (
        layer.name,
        f"{layer.out_features} x {layer.in_features}",
        f"{layer.signal_energy:.2g} ± {layer.signal_energy_se:.1g}" if clear else "below its noise",
        scale,
        f"{top}{layer.signal_rank}",
        f"{layer.weight_stable_rank:.1f}",
        f"{100 * min(1.0, explained):.0f} %",
        f"{layer.structure['hadamard']:.2f}" if layer.structure else "-",
    )


def _quantised(layer: LayerSpectra, quantised: Mapping[str, QuantisationError]) -> Sequence[str]:
    if not quantised:
        return ()
    found = quantised.get(layer.name)
    return ("-", "-") if found is None else (f"{100 * found.relative_error:.1f} %", f"{100 * found.shares[16]:.0f} %")


def summary(spectra: Spectra) -> list[str]:
    """What a person should take away, and how the columns read."""
    clear = [layer for layer in spectra.layers if layer.signal_energy > CLEAR * layer.signal_energy_se]
    lines = [
        f"{len(spectra.layers)} layers over {spectra.microbatches} microbatches ({spectra.tokens:,} tokens, "
        f"{spectra.label_tokens:,} labels, {spectra.mean_loss:.3f} nats each): signal above twice its error in {len(clear)}, "
        f"signal rank above 0 in {sum(layer.signal_rank > 0 for layer in spectra.layers)}; {spectra.seconds:.0f} s, of which "
        f"{spectra.finish_seconds:.0f} s to finish the layers",
        "signal: squared norm of the mean gradient per label token; noise scale: label tokens in a batch at which noise equals signal",
        "signal rank: held-out singular values above zero at a false discovery rate of 1 %; ≥ where all that were measured are",
        "stable rank of W: ||W||_F^2 over its largest singular value squared; input var. in 8: share of the inputs' variance in 8 directions",
        "|G| where |W|: 1 when the gradient does not know the weights' size",
    ]
    lines += [f"not measured: {name}: {reason}" for name, reason in spectra.skipped_layers.items()]
    return [*lines, *spectra.notes]
