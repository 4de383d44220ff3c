"""`docs/variants.md`: the matrix as tables with footnotes."""

from collections.abc import Mapping

from lora_select.variants import VARIANTS, matrix
from lora_select.variants.matrix import NOT_RUN, REFUSED, WORKS, Cells

HEAD = """# Variants: what each one does, measured

Made by `python -m benchmarks.capability` from [matrix.json](../lora_select/variants/matrix.json); not edited by hand.
Tiny models with random weights, r 4, three optimizer steps; every cell asserts an effect (names and counts of trained
parameters, logits, files), never a config. **✓** works · **a number** refused, see the footnote · **–** not run.

* `train`: only the variant's parameters are trained, as many as its count says; the start leaves the function alone
  (where it claims to); three steps change it, and nothing frozen. `resume`: a new model takes up parameters and
  optimizer and ends where the unbroken run did. `reload`: saved, and loaded by plain PEFT on the pristine base, the
  logits are the trained ones.
* `merge`, `unmerge`: the logits stay. On a quantised base a merge re-quantises the sum. `mix`: one batch, one row with
  the adapter and one with the base alone. `export`: plain LoRA within 1 % of ||dW|| and below full rank, loaded on the
  pristine base.
* ZeRO: two ranks over gloo end with the parameters of one process (within 2e-4 after three steps of rate 1e-2; or the
  logits are the same and fewer than one entry in a thousand is not: where a gradient is rounding, Adam takes its sign),
  and `save` writes a whole adapter that reloads. Where the base is quantised, the setting says so (`nf4-zero2`). ZeRO-1
  was not measured; it is taken to be as ZeRO-2.
"""


def page(found: Cells) -> str:
    """The whole page."""
    notes: dict[str, int] = {}
    parts = [HEAD, f"Versions: {', '.join(f'{k} {v}' for k, v in matrix.recorded().items())}.", _summary(found)]
    parts += ["## Parameters, formula and source", _catalogue()]
    for setting in (*matrix.SINGLE, *matrix.RANKS):
        checks = matrix.RANK_CHECKS if setting in matrix.RANKS else matrix.CHECKS
        parts += [f"## {setting}", _table(found, setting, checks, notes)]
    parts += ["## Footnotes", "\n".join(f"{number}. {reason}" for reason, number in notes.items())]
    return "\n\n".join(parts) + "\n"


def counts(found: Mapping[str, Mapping[str, str]]) -> tuple[int, int, int]:
    """Cells that work, are refused, were not run (missing ones among them)."""
    names = [variant.name for variant in VARIANTS]
    every = [found.get(name, {}).get(key, NOT_RUN) for name in names for key in matrix.every_key()]
    works, refused = (sum(cell.startswith(kind) for cell in every) for kind in (WORKS, REFUSED))
    return works, refused, len(every) - works - refused


def _summary(found: Cells) -> str:
    works, refused, rest = counts(found)
    return f"{len(VARIANTS)} variants, {works + refused + rest} cells: {works} work, {refused} refused, {rest} not run."


def _catalogue() -> str:
    lines = ["| variant | what it is | reference |", "|---|---|---|"]
    for variant in VARIANTS:
        words = " ".join((variant.__doc__ or "").strip().split("\n\n")[0].split()).replace("|", r"\|")
        lines.append(f"| {variant.name} | {words} | {'; '.join(variant.references)} |")
    return "\n".join(lines)


def _table(found: Cells, setting: str, checks: tuple[str, ...], notes: dict[str, int]) -> str:
    lines = [f"| variant | {' | '.join(checks)} |", "|---" * (len(checks) + 1) + "|"]
    for variant in VARIANTS:
        row = [_mark(found.get(variant.name, {}).get(f"{setting}/{check}", NOT_RUN), notes) for check in checks]
        lines.append(f"| {variant.name} | {' | '.join(row)} |")
    return "\n".join(lines)


def _mark(cell: str, notes: dict[str, int]) -> str:
    if cell == WORKS:
        return "✓"
    if cell.startswith(REFUSED):
        return str(notes.setdefault(cell.removeprefix(REFUSED), len(notes) + 1))
    return "–"
