"""Fill the matrix: every variant in every setting, one cell after the other; what is finished is never done again."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.capability import distributed, tiny
from lora_select.errors import InputError
from lora_select.variants import VARIANTS, matrix, offered
from lora_select.variants.base import Variant
from lora_select.variants.matrix import FILE, NOT_RUN, Cells

RANK = 4
"""r in the tiny models, whose narrowest layer has 64 outputs."""


def verify(
    file: Path = FILE,
    *,
    names: Sequence[str] = (),
    settings: Sequence[str] = (),
    again: bool = False,
    say: Callable[[str], Any] = print,
) -> Cells:
    """Run what is missing and write the matrix after every variant and setting.

    Args:
        file: the matrix.
        names: variants; all by default.
        settings: settings; all by default.
        again: also do what is recorded already.
        say: gets a line of progress.

    Returns:
        All cells.

    Raises:
        InputError: the recorded cells are of other versions than those installed, and not all of them would be measured again.
    """
    import torch

    recorded = matrix.recorded(file)
    if recorded and recorded != matrix.versions() and not (again and not names and not settings):
        raise InputError(
            f"the matrix was measured with {recorded}, and installed are {matrix.versions()}; measure all of it: "
            "python -m benchmarks.capability --again"
        )

    torch.set_num_threads(1)
    found = matrix.read(file)
    kinds = [variant for variant in VARIANTS if not names or variant.name in names]
    with tempfile.TemporaryDirectory(prefix="capability-") as folder:
        for setting in settings or (*matrix.SINGLE, *matrix.RANKS):
            missing = [k for k in kinds if again or not _known(found.get(k.name, {}), setting)]
            if not missing:
                continue
            for name, row in _examine(missing, setting, Path(folder)):
                found.setdefault(name, {}).update({f"{setting}/{check}": cell for check, cell in row.items()})
                matrix.write(found, file)
                works = sum(cell == matrix.WORKS for cell in row.values())
                say(f"{setting:12} {name:12} {works} of {len(row)} work")
    return found


def _known(row: dict[str, str], setting: str) -> bool:
    """Whether the setting's cells are there; `not run` for want of a package is tried again."""
    mine = {key: cell for key, cell in row.items() if key.startswith(f"{setting}/")}
    return bool(mine) and not any(cell.startswith(f"{NOT_RUN}bitsandbytes") for cell in mine.values())


def _examine(kinds: "Sequence[type[Variant]]", setting: str, folder: Path) -> Any:
    architecture, base = setting.split("/")
    if not base.startswith(("fp32", "bf16", "zero")) and matrix.versions()["bitsandbytes"] == "none":
        checks_of = matrix.RANK_CHECKS if setting in matrix.RANKS else matrix.CHECKS
        for kind in kinds:
            yield kind.name, dict.fromkeys(checks_of, f"{NOT_RUN}bitsandbytes is not installed")
        return
    if setting in matrix.RANKS:
        held, _, stage = base.rpartition("zero")
        yield from distributed.examine([(k.name, RANK) for k in kinds], held.rstrip("-") or "fp32", int(stage), folder)
        return
    from benchmarks.capability import checks, spectra

    place = folder / architecture
    if not place.is_dir():
        tiny.make(architecture, place)
    bench = tiny.Bench(architecture, base, place)
    tensors = spectra.record(bench, folder / f"{architecture}-spectra")
    for kind in kinds:
        work = folder / f"{setting.replace('/', '-')}-{kind.name}"
        work.mkdir(parents=True)
        yield kind.name, checks.examine(offered(kind, [RANK])[0], bench, tensors, work)
