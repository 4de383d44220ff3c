"""The saved view's format is internal to MLflow: only its own page can say whether it is understood."""

import chromium
import mlflow_samples as samples
import pytest

from lora_select.tracking import comparison, names
from lora_select.tracking.store import prepare
from lora_select.tracking.tracker import Tracker

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.executable() is None, reason="no Chromium: apt-get install chromium"),
]
CHOICES = (("lora", 8, 0.95), ("rslora", 16, 0.81), ("pissa", 4, 0.9))


def track(store, folder, variant, r, loss) -> str:
    """One pipeline run as the flow logs it; returns the parent's id."""
    folder.mkdir()
    tracker = Tracker.start(store, folder, folder.name, name=f"tweets-{variant}")
    rival = 1.02 if variant == "rslora" else None
    line = [
        samples.dataset(folder),
        samples.profile(folder),
        samples.decision(variant, r),
        samples.adapter(folder, variant, r),
    ]
    for record in line:
        do(tracker, names.LABELS[type(record).__name__], record, folder)
    if rival:
        do(tracker, "adapter-plain-lora", samples.adapter(folder / "rival"), folder / "rival")
    do(tracker, "evaluation", samples.evaluation(folder, loss, rival_loss=rival), folder)
    do(tracker, "report", samples.report(folder), folder)
    assert tracker.finish() == 0
    return tracker.parent


def do(tracker, label, record, folder):
    tracker.begin(label)
    tracker.log(label, record, folder)
    tracker.end(label)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A server with three runs; yields its address, the experiment's id and the parents' ids."""
    folder = tmp_path_factory.mktemp("site")
    store = prepare(f"sqlite:///{folder}/mlflow.db")
    comparison.save(store)
    parents = [track(store, folder / variant, variant, r, loss) for variant, r, loss in CHOICES]
    with samples.server(folder / "mlflow.db", samples.free_port()) as address:
        yield address, store.experiment_id, parents


def test_the_saved_view_shows_runs_and_columns_side_by_side(site, tmp_path):
    address, experiment, _ = site
    runs = [f"tweets-{variant}" for variant, *_ in CHOICES]
    headings = [*comparison.PARAMS, *comparison.METRICS]
    with chromium.opened(comparison.view_link(address, experiment), (3600, 900)) as page:
        seen = page.wait_for([*runs, "adapter-plain-lora", *headings, "runs side by side", "4 matching runs"])
        page.picture(tmp_path / "table.png")
        columns = page.evaluate("[...document.querySelectorAll('.ag-header-cell')].map(c => [c.getAttribute('col-id'), "
                                "c.getBoundingClientRect().x])")  # fmt: skip
    order = [name for name, _ in sorted(columns, key=lambda column: column[1])]
    wanted = [f"params.`{name}`" for name in comparison.PARAMS] + [f"metrics.`{name}`" for name in comparison.METRICS]
    assert [name for name in order if name in wanted] == wanted, "variant and rank come first, then the losses"
    assert "rslora" in seen
    assert "0.81" in seen
    best_first = sorted(runs, key=seen.index)
    assert best_first == ["tweets-rslora", "tweets-pissa", "tweets-lora"], "sorted by the adapted loss"


def test_the_charts_are_drawn(site, tmp_path):
    address, experiment, _ = site
    with chromium.opened(comparison.view_link(address, experiment, charts=True)) as page:
        page.wait_for([names.TRAIN_LOSS, *comparison.BARS[:2], "0.81", "0.95", "1.02", "Step"])
        page.picture(tmp_path / "charts.png")
        assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") >= 3


def test_the_compare_link_lays_runs_side_by_side(site, tmp_path):
    address, experiment, parents = site
    with chromium.opened(comparison.compare_link(address, experiment, parents), (2000, 3000)) as page:
        page.wait_for(["Comparing 3 Runs from 1 Experiment", *(f"tweets-{variant}" for variant, *_ in CHOICES)])
        page.picture(tmp_path / "compare.png")


def test_a_run_shows_its_children_and_the_report(site, tmp_path):
    address, experiment, parents = site
    with chromium.opened(
        f"{address}/#/experiments/{experiment}/runs/{parents[1]}/artifacts/report/report.html"
    ) as page:
        page.wait_for(["tweets-rslora", "report.html", "candidates.json"][:2])
        page.picture(tmp_path / "report.png")
    with chromium.opened(comparison.run_link(address, experiment, parents[1])) as page:
        page.wait_for(["Child runs", "evaluation", "adapter-plain-lora", "eval/loss/adapted"])
        page.picture(tmp_path / "run.png")
