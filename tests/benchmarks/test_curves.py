"""The constants of the forecast are those of the sweep, and a task that is left out tells nothing of itself."""

import pytest

from benchmarks.learning_rate import curves
from benchmarks.learning_rate.curves import Point
from benchmarks.selection.judging import curve_settings
from lora_select.selection.calibration import shipped


def test_the_shipped_curve_is_fitted_to_the_sweep():
    assert curves.fitted(curves.points(*curve_settings())) == shipped().curve


def test_what_lies_on_a_line_is_told_exactly_and_a_task_off_it_is_missed():
    line = [
        Point(f"{task}-{n}", task, lost, 0.2 + 0.8 * lost)
        for task in "abcd"
        for n, lost in enumerate((0.1, 0.4, 0.7, 0.9))
    ]
    assert curves.left_out(line)["median_error"] == pytest.approx(0.0, abs=1e-3)
    off = [Point("e-0", "e", 0.5, 0.0)]
    found = curves.left_out([*line, *off])
    assert found["of"] - found["inside"] >= 1
