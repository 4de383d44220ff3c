"""The report as a person sees it: its first screen, dark mode, a phone, paper."""

import dataclasses

import chromium
import mlflow_samples as samples
import pytest
from report_samples import pair, report_inputs

from lora_select.report.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.executable() is None, reason="no Chromium: apt-get install chromium"),
]
BOTTOM = "document.querySelector('table').getBoundingClientRect().bottom"
PAGE, BOX = (f"getComputedStyle(document.{place}).backgroundColor" for place in ("body", "querySelector('.verdict')"))


@pytest.fixture
def page(tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    kept = dataclasses.replace(
        samples.retention(), task={"raw": pair(3.0, 0.5, -2.6, -2.4), "filter": pair(3.0, 0.51, -2.6, -2.4)}
    )
    made = report_inputs(tmp_path / "stages")
    told = dataclasses.replace(made, records={**made.records, "retention": kept})
    file = out / write_report(told, out).file.path
    with chromium.opened(f"file://{file}", (1000, 960)) as opened:
        opened.wait_for(["Before and after", "What the base model keeps"])
        yield opened


def test_the_answer_the_frontier_and_the_table_are_on_the_first_screen(page):
    assert page.evaluate("document.querySelectorAll('.first img').length") == 1
    assert page.evaluate(BOTTOM) < 960
    before = page.evaluate("document.querySelector('.verdict').getBoundingClientRect().top")
    assert (
        0
        < before
        < page.evaluate("document.querySelector('.first').getBoundingClientRect().top")
        < page.evaluate(BOTTOM)
    )


def test_it_is_dark_where_the_reader_s_system_is_and_paper_stays_white(page):
    light = page.evaluate(PAGE), page.evaluate(BOX)
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = page.evaluate(PAGE), page.evaluate(BOX)
    page.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(23, 23, 23)"
    assert light[1] != dark[1]
    assert (page.evaluate(PAGE), page.evaluate(BOX)) == light


def test_a_phone_is_not_scrolled_sideways(page):
    page.ask("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert (
        page.evaluate("document.querySelector('.first img').getBoundingClientRect().width") > 500
    )  # scrolled in its own box
