"""The spectral record for a terminal: one line a layer, and what the columns mean."""

import re
from collections.abc import Mapping, Sequence

from lora_select.diagnostics import costs as adapter_costs
from lora_select.records import AdapterCosts, LayerSpectra, QuantisationError, Spectra

CLEAR = 2.0
"""Standard errors that a signal must exceed to be shown."""


def print_table(spectra: Spectra, measured: AdapterCosts | None = None) -> None:
    """One line a layer, most signal first within its block, and what the columns mean."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True)
    quantised = {} if measured is None else measured.quantisation
    more = (f"{next(iter(quantised.values())).kind} error", "in 16") if quantised else ()
    structured = any(layer.structure for layer in spectra.layers)
    for name in (
        "shape",
        "signal ± SE",
        "noise scale",
        "signal rank",
        "stable rank of W",
        "input var. in 8",
        *(("|G| where |W|",) if structured else ()),
        *more,
    ):
        table.add_column(name, justify="right", no_wrap=True)
    label_tokens = spectra.label_tokens / spectra.microbatches
    for layer in sorted(spectra.layers, key=_place):
        score = (f"{layer.structure['hadamard']:.2f}" if layer.structure else "-",) if structured else ()
        table.add_row(*_row(layer, label_tokens), *score, *_quantised(layer, quantised))
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
    ]
    if any(layer.structure for layer in spectra.layers):
        lines.append("|G| where |W|: 1 when the gradient does not know the weights' size")
    lines += [f"not measured: {name}: {reason}" for name, reason in spectra.skipped_layers.items()]
    return [*lines, *spectra.notes]
