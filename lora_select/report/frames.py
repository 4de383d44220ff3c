"""Records as rows: for pandas, and as tables and paragraphs that a notebook shows."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_select.errors import require
from lora_select.records import Decision, LayerSpectra

if TYPE_CHECKING:
    import pandas


def candidates(decision: Decision) -> list[dict[str, Any]]:
    """One row a candidate, the choice first."""
    ordered = sorted(decision.candidates, key=lambda one: (one.key != decision.choice_key, -one.score, one.key))
    return [
        {
            "candidate": one.key,
            "chosen": one.key == decision.choice_key,
            "parameters": one.spec.num_parameters,
            "learning_rate": one.spec.learning_rate,
            "score": one.score,
            "score_se": one.score_se,
            "why_not": " ".join(one.rejected),
        }
        for one in ordered
    ]


def layer_row(layer: LayerSpectra) -> dict[str, Any]:
    """One row of a layer's measurements."""
    return {
        "layer": layer.name,
        "out_features": layer.out_features,
        "in_features": layer.in_features,
        "signal_energy": layer.signal_energy,
        "signal_energy_se": layer.signal_energy_se,
        "noise_energy": layer.noise_energy,
        "signal_rank": layer.signal_rank,
        "weight_stable_rank": layer.weight_stable_rank,
        "activation_energy": layer.activation_energy,
        "output_energy": layer.output_energy,
    }


def frame(rows: Sequence[Mapping[str, Any]]) -> "pandas.DataFrame":
    """A data frame.

    Raises:
        InputError: pandas is missing.
    """
    require("pandas", "data", "`to_frame()`")
    import pandas

    return pandas.DataFrame(list(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """An HTML table; empty where there is no row."""
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def paragraphs(text: str) -> str:
    """HTML paragraphs, one a line."""
    return "".join(f"<p>{html.escape(line)}</p>" for line in text.splitlines() if line.strip())
