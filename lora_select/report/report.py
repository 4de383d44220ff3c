"""`report.html`: one self-contained page that a person reads; every number in it comes from a record."""

import base64
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_select import __version__
from lora_select.evaluation import wording
from lora_select.evaluation.metrics import exact_match
from lora_select.records import BaseModel, Cost, Evaluation, Report, file_ref, write_text
from lora_select.records.digests import library_digest
from lora_select.report import plots
from lora_select.report.verdict import (
    change,
    delta,
    examples,
    few_shot_does_it,
    interval,
    role,
    sentences,
    title,
    value,
)
from lora_select.selection.prediction import outcome

TEMPLATE = "report.html.j2"
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "mlflow")
EMPTY_LINES, NEWLINE = re.compile(r"(?:[^\S\n]*\n){3,}"), "\n"
ARMS = {"raw": "as trained", "scale": "scaled down", "filter": "filtered"}


@dataclass(frozen=True)
class ReportInputs:
    """What the page is made from: the records by stage name, the folders of the stages, the MLflow link, what the training was expected to cost and did."""

    base: BaseModel
    records: Mapping[str, Any]
    folders: Mapping[str, Path]
    link: str
    costs: tuple[Cost, Cost]


def write_report(inputs: ReportInputs, folder: Path) -> Report:
    """Draw the figures, write the page, and name both."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    figures = _figures(inputs, folder)
    decision, evaluation = inputs.records["decision"], inputs.records["evaluation"]
    promotion, adapter = inputs.records.get("promotion"), inputs.records.get("adapter")
    environment = Environment(
        loader=PackageLoader("lora_select.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "change": change,
        "delta": delta,
        "interval": interval,
        "left": wording.left,
        "number": number,
        "sentence": sentence,
        "shown": shown,
        "in_order": wording.in_order,
        "matches": exact_match,
        "title": title,
        "value": value,
    }
    page = environment.get_template(TEMPLATE).render(
        **inputs.records,
        base=inputs.base,
        link=inputs.link,
        costs=inputs.costs,
        rivals={name: wording.rival(name, evaluation.champion_version) for name in evaluation.against},
        arms=ARMS,
        outcome=outcome(decision, evaluation, adapter),
        metrics=wording.in_order(evaluation.metrics),
        verdict=sentences(decision, evaluation, promotion, adapter),
        role=role(promotion) if promotion else None,
        examples=examples(evaluation),
        good=change(evaluation.metrics["loss"]) == "better" and not few_shot_does_it(evaluation),
        hits=_hits(evaluation),
        figures={name: _embedded(path) for name, path in figures.items()},
        version=__version__,
        packages=_packages(),
        library=library_digest(),
    )
    write_text(folder / "report.html", page)
    return Report(file_ref(folder / "report.html", folder), tuple(file_ref(path, folder) for path in figures.values()))


def _hits(evaluation: Evaluation) -> dict[str, int]:
    """How many of the shown samples are right, without and with the adapter."""
    return {
        "base": sum(exact_match(sample.expected, sample.base) for sample in evaluation.samples),
        "adapted": sum(exact_match(sample.expected, sample.adapted) for sample in evaluation.samples),
    }


def _packages() -> dict[str, str]:
    """Versions of what did the work, without importing it."""
    found = [metadata.distribution(name) for name in PACKAGES if importlib.util.find_spec(name)]
    return {distribution.metadata["Name"]: distribution.version for distribution in found}


def number(value: float) -> str:
    """Thousands separated, small numbers with three digits."""
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def sentence(text: str) -> str:
    """Text with a capital and a full stop; symbols such as `r` and `fp32` keep their case."""
    first = text.partition(" ")[0].rstrip(",:;")
    if len(first) > 1 and first.replace("-", "").replace("'", "").isalpha():
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def shown(text: str) -> str:
    r"""An answer with its empty lines counted where more than two follow each other; a model that writes nothing else fills no page.

    >>> shown("yes" + 32 * "\n")
    'yes (32 line breaks)'
    """
    return EMPTY_LINES.sub(lambda run: f" ({run[0].count(NEWLINE)} line breaks) ", text).strip(" ")


def _figures(inputs: ReportInputs, folder: Path) -> dict[str, Path]:
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    found, folders = inputs.records, inputs.folders
    metrics = folders["adapter"] / found["adapter"].metrics_file.path
    rows = folders["evaluation"] / found["evaluation"].rows_file.path
    return {
        "training": plots.training(metrics, target / "training.png", found["adapter"].validation),
        "rows": plots.before_and_after(rows, target / "rows.png"),
        "candidates": plots.candidates(found["decision"], target / "candidates.png"),
        "signal_ranks": plots.signal_ranks(found["spectra"], target / "signal-ranks.png"),
        "spectrum": plots.spectrum(found["spectra"], target / "spectrum.png"),
        **_frontier(found, target),
    }


def _frontier(found: Mapping[str, Any], target: Path) -> dict[str, Path]:
    """Task loss against general loss, where retention was looked at."""
    if "retention" not in found:
        return {}
    from lora_select.retention.plot import frontier

    frontier(found["retention"], target / "frontier.png")
    return {"frontier": target / "frontier.png"}


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
