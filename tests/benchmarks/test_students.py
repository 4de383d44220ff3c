"""How far a student's learning rates are searched, and what counts as a hit or as a false alarm."""

import math

from benchmarks.spectral.planted import PLAIN
from benchmarks.spectral.students import judged, next_power


def run(power: int, choose: float, judge: float = 1.0) -> dict[str, float]:
    return {"power": power, "choose": choose, "judge": judge}


def test_rates_go_on_from_an_end_while_it_is_the_best():
    assert next_power([]) == 0
    runs = [run(0, 0.3), run(-1, 0.4), run(1, 0.2)]
    assert next_power(runs) == 2
    assert next_power([*runs, run(2, math.nan)]) is None
    assert next_power([run(0, 0.2), run(-1, 0.4), run(1, 0.3)]) is None
    assert next_power([run(0, 0.3), run(-1, 0.2), run(1, 0.4)]) == -2


def test_a_hit_is_half_of_loras_divergence_at_the_rate_that_other_rows_chose():
    found = judged(
        {
            "sparse": {"lora": {"runs": [run(0, 0.2, 1.0), run(1, 0.1, 2.0)]}, "shira": {"runs": [run(0, 0.1, 0.9)]}},
            "block rotation": {"lora": {"runs": [run(0, 0.2, 1.0)]}, "oft": {"runs": [run(0, 0.1, 0.6)]}},
            PLAIN: {"lora": {"runs": [run(0, 0.2, 1.0)]}, "oft": {"runs": [run(0, 0.1, 0.4)]}},
        }
    )
    assert (found["hits"], found["false_alarms"]) == (["sparse"], ["oft"])
    assert found["over_lora"]["sparse"] == {"lora": 1.0, "shira": 0.45}
