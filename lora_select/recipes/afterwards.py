"""The filter after somebody else's training: `retain.py` with the run's settings, and the rows that it reads."""

import pprint
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.data.labels.tokens import TokenRow
from lora_select.recipes.rows import Rows, write_lines
from lora_select.records import TrainingPlan, write_text

if TYPE_CHECKING:
    from lora_select.retention.settings import RetentionSettings

RETAIN, TASK = "retain.py", "task"
"""The filter after the training, with the run's settings, and the folder of the rows that it reads."""
OF_THE_MACHINE = ("device", "dtype")
"""Settings that the machine of the training decides."""
RETAIN_SCRIPT = string.Template('''"""After the training: give back what the base model knew, as far as the task does not notice.

    pip install 'lora-select[report]'
    python retain.py ADAPTER          # the trained PEFT folder; kept/adapter is then what should be served
"""

import sys

import lora_select as ls

SETTINGS = $settings


def main():
    if len(sys.argv) != 2:
        raise SystemExit("name the folder of the trained adapter: python retain.py ADAPTER")
    try:
        made = ls.retain(sys.argv[1], $data, "kept", **SETTINGS)
    except ls.InputError as error:
        raise SystemExit(str(error))
    print(*made.decision.reasons, sep="\\n")
    print("kept/adapter is what should be served")


if __name__ == "__main__":
    main()
''')


def settings_after(
    config: Mapping[str, Any], plan: TrainingPlan, trained: list[TokenRow], quantize: str | None
) -> "RetentionSettings | None":
    """How the run's own filter would be set after this training; None where it is off.

    Args:
        config: the run's `retention`.
        plan: of the training.
        trained: its rows; a short training pays for less.
        quantize: how the base is held.
    """
    if config["mode"] == "off":
        return None
    from lora_select.retention.settings import beside_training

    given = dict(config)
    for name in ("references", "judges", "earlier"):  # the folder may be moved, the files that it names stay
        given[name] = tuple(str(Path(one).resolve()) if Path(one).exists() else one for one in given[name])
    return beside_training(given, plan, trained, quantize=quantize)


def hand_over(rows: Rows, settings: "RetentionSettings | None", more: Mapping[str, Any], folder: Path) -> None:
    """Write `retain.py` and `task/`, or take away those of an earlier call.

    Args:
        rows: of the task.
        settings: of the filter; None where it is off.
        more: other keywords of :func:`lora_select.retain`.
        folder: the tool's.
    """
    shutil.rmtree(folder / TASK, ignore_errors=True)
    (folder / RETAIN).unlink(missing_ok=True)
    if settings is None or not rows.task:
        return
    (folder / TASK).mkdir()
    files = {name: f"{TASK}/{name}.jsonl" for name, part in rows.task.items() if part}
    for name, file in files.items():
        write_lines(folder / file, rows.task[name])
    told = {**more, **{name: value for name, value in vars(settings).items() if name not in OF_THE_MACHINE}}
    if "validation" in files:
        told |= {"kept": files["validation"], "evaluation": files.get("eval")}
    listed = pprint.pformat(told, indent=4, width=100, sort_dicts=False)
    write_text(folder / RETAIN, RETAIN_SCRIPT.substitute(data=repr(files["train"]), settings=listed))
