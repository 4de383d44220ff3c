"""The saved comparison view: candidates and runs side by side, behind one link.

MLflow's web page keeps a shared view as a tag of the experiment. The format is internal to MLflow 3.17 (hence the pin
and the test in a real browser): JSON whose `state` is `deflate;` and the base64 of the zlib-compressed page state.
"""

import base64
import json
import time
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from lora_select.tracking import names
from lora_select.tracking.store import Store

VIEW_ID = "lora-select-comparison"
"""Fixed, so that a link that was sent last year still opens."""
TAG = f"mlflow.sharedViewState.{VIEW_ID}"
MAX_TAG = 20_000
SORT = names.evaluation("loss", "adapted")
PARAMS = (names.VARIANT, names.R, names.LEARNING_RATE, names.TARGETS)
METRICS = (
    names.evaluation("loss", "base"),
    names.evaluation("loss", "adapted"),
    names.evaluation("loss", "difference"),
    names.evaluation("loss", "interval_low"),
    names.evaluation("loss", "interval_high"),
    names.evaluation("exact_match", "base"),
    names.evaluation("exact_match", "adapted"),
    names.evaluation("forgetting", "difference"),
    names.COST_TOKENS_PER_SECOND,
    names.COST_TRAIN_MINUTES,
)
_TRAINING = "workflowType=machine_learning"
"""Opens MLflow's pages for training; by default it shows those for language-model applications."""
FIXED_COLUMNS = ("attributes.`Run Name`", "runDateAndNestInfo")
"""Always first in MLflow's table."""
BARS = (
    names.evaluation("loss", "adapted"),
    names.evaluation("exact_match", "adapted"),
    names.evaluation("forgetting", "difference"),
    names.COST_TRAIN_MINUTES,
)
LINES = (names.TRAIN_LOSS,)


def save(store: Store) -> None:
    """Write the view to the experiment, unless it is there already in this form.

    Raises:
        mlflow.exceptions.MlflowException: MLflow cannot be reached.
    """
    content = state()
    tags = store.client.get_experiment(store.experiment_id).tags
    if TAG in tags and read(tags[TAG]) == content:
        return
    now = int(time.time() * 1000)
    packed = base64.b64encode(zlib.compress(json.dumps(content, sort_keys=True).encode())).decode()
    shared = {
        "name": "lora-select: runs side by side",
        "createdAt": now,
        "updatedAt": now,
        "state": f"deflate;{packed}",
    }
    text = json.dumps(shared)
    assert len(text) < MAX_TAG, "MLflow refuses a longer experiment tag"
    store.client.set_experiment_tag(store.experiment_id, TAG, text)


def read(tag: str) -> dict[str, Any]:
    """The page state inside a tag's text."""
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def state() -> dict[str, Any]:
    """The page state: which runs, sorted how, which columns and charts."""
    columns = [f"params.`{name}`" for name in PARAMS] + [f"metrics.`{name}`" for name in METRICS]
    return {
        "searchFilter": f"tags.`{names.COMPARED}` = 'true'",
        "orderByKey": f"metrics.`{SORT}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns,
        "columnOrder": [*FIXED_COLUMNS, *columns],
        "columnWidths": {FIXED_COLUMNS[0]: 190, **{name: _width(name) for name in columns}},
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": _charts(),
        "compareRunSections": [{"uuid": "lora", "name": "lora-select", "display": True, "isReordered": True}],
        "isAccordionReordered": True,
        "viewMaximized": False,
        "runListHidden": False,
        "hideEmptyCharts": True,
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "groupBy": None,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def view_link(host: str, experiment_id: str, *, charts: bool = False) -> str:
    """The link that opens the saved view, as a table or as charts.

    >>> view_link("http://h", "1")
    'http://h/#/experiments/1/runs?viewStateShareKey=lora-select-comparison&workflowType=machine_learning'
    """
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{host.rstrip('/')}/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW_ID}{mode}&{_TRAINING}"


def compare_link(host: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """The link that lays the given runs side by side; MLflow's page needs both lists.

    >>> compare_link("http://h", "1", ["a"])
    'http://h/#/compare-runs?runs=%5B%22a%22%5D&experiments=%5B%221%22%5D'
    """
    run_list, experiments = (quote(json.dumps(list(ids)), safe="") for ids in (run_ids, [experiment_id]))
    return f"{host.rstrip('/')}/#/compare-runs?runs={run_list}&experiments={experiments}"


def run_link(host: str, experiment_id: str, run_id: str) -> str:
    """The page of one run."""
    return f"{host.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{_TRAINING}"


def _width(column: str) -> int:
    """Pixels that show the whole heading, so that `eval/loss/base` and `eval/loss/adapted` can be told apart."""
    return 45 + 7 * len(column.split("`")[1])


def _charts() -> list[dict[str, Any]]:
    common = {"metricSectionId": "lora", "deleted": False, "isGenerated": False, "runsCountToCompare": 20}
    bars = [{**common, "type": "BAR", "uuid": f"bar-{i}", "metricKey": name} for i, name in enumerate(BARS)]
    line = {
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }
    lines = [
        {**common, **line, "type": "LINE", "uuid": f"line-{i}", "metricKey": name, "selectedMetricKeys": [name]}
        for i, name in enumerate(LINES)
    ]
    return [*lines, *bars]
