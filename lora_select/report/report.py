"""`report.html`: one self-contained page that a person reads; every number in it comes from a record."""

import base64
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_select import __version__
from lora_select.evaluation.metrics import exact_match
from lora_select.records import BaseModel, Evaluation, MetricComparison, Report, file_ref, write_text
from lora_select.records.digests import library_digest
from lora_select.report import plots
from lora_select.selection.prediction import outcome

TEMPLATE = "report.html.j2"
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "mlflow")
SHARE_UNIT = "of rows"
NAMES = {"loss": "held-out loss", "exact_match": "exact match", "valid_json": "answers that are JSON"}
ARMS = {"raw": "as trained", "scale": "scaled down", "filter": "filtered"}
RIVALS = {"plain_lora": "plain LoRA", "champion": "the present champion"}


@dataclass(frozen=True)
class ReportInputs:
    """What the page is made from: the records by stage name, the folders of the stages, and the MLflow link."""

    base: BaseModel
    records: Mapping[str, Any]
    folders: Mapping[str, Path]
    link: str


def write_report(inputs: ReportInputs, folder: Path) -> Report:
    """Draw the figures, write the page, and name both."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    figures = _figures(inputs, folder)
    environment = Environment(
        loader=PackageLoader("lora_select.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "change": change,
        "delta": delta,
        "interval": interval,
        "number": number,
        "sentence": sentence,
        "in_order": in_order,
        "matches": exact_match,
        "title": title,
        "value": value,
    }
    page = environment.get_template(TEMPLATE).render(
        **inputs.records,
        base=inputs.base,
        link=inputs.link,
        rival_names=RIVALS,
        arms=ARMS,
        outcome=outcome(inputs.records["decision"], inputs.records["evaluation"]),
        metrics=in_order(inputs.records["evaluation"].metrics),
        verdict=verdict(inputs.records["evaluation"]),
        good=change(inputs.records["evaluation"].metrics["loss"]) == "better",
        hits=_hits(inputs.records["evaluation"]),
        figures={name: _embedded(path) for name, path in figures.items()},
        version=__version__,
        packages=_packages(),
        library=library_digest(),
    )
    write_text(folder / "report.html", page)
    return Report(file_ref(folder / "report.html", folder), tuple(file_ref(path, folder) for path in figures.values()))


def verdict(evaluation: Evaluation) -> str:
    """The result in one or two sentences, bad news included."""
    loss = evaluation.metrics["loss"]
    if loss.significant and loss.difference < 0:
        words = f"The adapter lowers held-out loss from {loss.base:.3f} to {loss.adapted:.3f} {loss.unit}"
    elif loss.significant:
        words = f"The adapter makes held-out loss worse: {loss.base:.3f} to {loss.adapted:.3f} {loss.unit}"
    else:
        words = f"No change of held-out loss can be told from noise: {loss.base:.3f} to {loss.adapted:.3f} {loss.unit}"
    words += f" (95 % interval of the change {interval(loss)}, {loss.rows} rows)."
    for rival, metrics in evaluation.against.items():
        words += f" {_against(rival, metrics['loss'])}"
    match = evaluation.metrics.get("exact_match")
    if match:
        words += f" {_matched(match)}"
    forgetting = evaluation.forgetting
    if forgetting.significant:
        direction = "rises" if forgetting.difference > 0 else "falls"
        words += (
            f" On general reference text its loss {direction} by {abs(forgetting.difference):.3f} {forgetting.unit} "
            f"({interval(forgetting)})."
        )
    return words


def _matched(match: MetricComparison) -> str:
    shares = f"{value(match.base, match.unit)} to {value(match.adapted, match.unit)} of {match.rows} rows"
    if not match.significant:
        return f"Exactly right answers: {shares}, which cannot be told from noise."
    direction = "rise" if match.difference > 0 else "fall"
    return f"Exactly right answers {direction} from {shares}."


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


def _against(rival: str, loss: MetricComparison) -> str:
    name = RIVALS.get(rival, rival)
    if not loss.significant:
        return f"It cannot be told apart from {name} ({interval(loss)})."
    return f"It is {'better' if loss.difference < 0 else 'worse'} than {name} by {abs(loss.difference):.3f} ({interval(loss)})."


def in_order(metrics: Mapping[str, MetricComparison]) -> dict[str, MetricComparison]:
    """Loss first: it is what decides."""
    known = [name for name in NAMES if name in metrics]
    return {name: metrics[name] for name in (*known, *(name for name in metrics if name not in NAMES))}


def change(item: MetricComparison) -> str:
    """`better`, `worse` or `not distinguishable`."""
    if not item.significant:
        return "not distinguishable"
    return "better" if (item.difference < 0) == (item.better == "lower") else "worse"


def title(item: MetricComparison, name: str) -> str:
    """The metric's name for people, with its unit; shares of rows are in percent and need none."""
    words = NAMES.get(name, name)
    return words if item.unit == SHARE_UNIT else f"{words} ({item.unit})"


def value(amount: float, unit: str) -> str:
    """Three decimals; shares of rows in percent."""
    return f"{100 * amount:.1f} %" if unit == SHARE_UNIT else f"{amount:.3f}"


def delta(amount: float, unit: str) -> str:
    """A change, with its sign; of shares in percentage points."""
    return f"{100 * amount:+.1f} pp" if unit == SHARE_UNIT else f"{amount:+.3f}"


def interval(item: MetricComparison) -> str:
    """The interval with signs, in the units of :func:`delta`."""
    low, high = (delta(bound, item.unit) for bound in item.interval)
    return f"{low.removesuffix(' pp')} to {high}"


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


def _figures(inputs: ReportInputs, folder: Path) -> dict[str, Path]:
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    found, folders = inputs.records, inputs.folders
    metrics = folders["adapter"] / found["adapter"].metrics_file.path
    rows = folders["evaluation"] / found["evaluation"].rows_file.path
    return {
        "training": plots.training(metrics, target / "training.png"),
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
