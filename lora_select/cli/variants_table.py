"""The table of `lora-select variants`, for a terminal and for pipes."""

from typing import Any

from lora_select.variants.listing import Line


def show(lines: tuple[Line, ...], where: str, *, plain: bool) -> str | Any:
    """A table for a terminal, or tab-separated lines where there is none."""
    rows = [_cells(line) for line in lines]
    notes = [(line.name, line.refused) for line in lines if line.refused]
    if plain:
        head = ("variant", "size", "parameters", "time", "memory", "")
        return "\n".join([where, *("\t".join(row) for row in (head, *rows)), *_footnotes(notes)])
    from rich.table import Table

    table = Table(
        title=where,
        caption="time and memory next to LoRA r 32: PEFT's MetaMathQA runs, one L40S; * measured by the spectral pass",
    )
    for name, justify in (
        ("variant", "left"),
        ("size", "left"),
        ("parameters", "right"),
        ("time", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("refused because", overflow="fold")
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*row[:-1], " ".join(line.refused), style="dim" if line.refused else "")
    return table


def _cells(line: Line) -> tuple[str, ...]:
    time = f"x {line.time:.2f}" if line.time is not None else "?"
    memory = f"{line.memory_gb:+.1f} GB" if line.memory_gb is not None else "?"
    name = f"{line.name}*" if line.candidate else line.name
    return name, line.size, f"{line.parameters:,}", time, memory, "refused" if line.refused else "ok"


def _footnotes(notes: list[tuple[str, tuple[str, ...]]]) -> list[str]:
    return [f"{name}: {sentence}" for name, sentences in notes for sentence in sentences]
