"""`lora-select calibrate`: what past runs predicted and what came out, and constants refitted from them."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from lora_select.errors import InputError
from lora_select.pipeline.history import PastRun, read_run
from lora_select.records import to_json, write_text
from lora_select.selection.calibration import Calibration, shipped
from lora_select.selection.prediction import MINIMUM_SETTINGS, coverage, outcome


def calibrate(folders: Sequence[str], out: Path | None) -> str:
    """Read finished runs below `folders`, report the coverage of their predictions, and refit the predicted gain.

    Runs give one rate each, so the rate constants stay as they are; those come from the oracle sweep.

    Args:
        folders: run folders, or folders of runs.
        out: file for the refitted constants.

    Returns:
        A table and two sentences.

    Raises:
        InputError: no finished run.
    """
    runs = _finished(folders)
    if not runs:
        raise InputError(
            f"no run below {', '.join(folders)} has both decision.json and evaluation.json; name a folder such as runs"
        )
    lines, found = [], []
    for run in runs:
        made = outcome(run.decision, run.evaluation, run.adapter) if run.evaluation else None
        found += [made] if made else []
        lines.append(f"{run.folder.name:26} {run.decision.choice_key:24} {made or 'nothing was predicted'}")
    lines += ["", coverage(found) if found else "no run made a prediction"]
    refitted = refit(runs, shipped())
    if refitted is None:
        return "\n".join([*lines, f"the gain cannot be refitted from {len(runs)} run: {MINIMUM_SETTINGS} are needed"])
    lines.append(
        f"gain of these {refitted.settings} runs: {refitted.gain_share:.3f} ± {refitted.gain_share_sd:.3f} of the base loss (shipped: "
        f"{shipped().gain_share:.3f} ± {shipped().gain_share_sd:.3f} from {shipped().settings} settings)"
    )
    if out:
        write_text(out, to_json(refitted))
        lines.append(f"written to {out}")
    return "\n".join(lines)


def refit(runs: Sequence[PastRun], constants: Calibration) -> Calibration | None:
    """The constants with the gain of these runs; None below three runs."""
    losses = [run.evaluation.metrics["loss"] for run in runs if run.evaluation]
    shares = [-loss.difference / loss.base for loss in losses]
    if len(shares) < MINIMUM_SETTINGS:
        return None
    return dataclasses.replace(
        constants,
        source=", ".join(run.folder.name for run in runs),
        settings=len(shares),
        gain_share=round(statistics.mean(shares), 4),
        gain_share_sd=round(statistics.stdev(shares), 4),
    )


def _finished(folders: Sequence[str]) -> list[PastRun]:
    """Each run once: `latest` is a link to one of the others."""
    places = [file.parent for folder in folders for file in sorted(Path(folder).glob("**/evaluation.json"))]
    known = {
        place.resolve(): place
        for place in places
        if (place / "decision.json").is_file() and (place / "profile.json").is_file()
    }
    return [read_run(place) for place in known]
