"""The two criteria of `benchmarks.validation` on planted runs."""

from benchmarks.validation import report


def run(chosen: int, judged: dict[int, float], error: float = 0.01):
    less = {step: [judged[chosen] - loss, error] for step, loss in judged.items()}
    best = min(judged, key=lambda step: judged[step])
    return {
        "rate": 1e-3,
        "kept": 8,
        "chosen": chosen,
        "last": max(judged),
        "best": best,
        "judged": judged,
        "chosen_less": less,
    }


def test_a_kept_checkpoint_far_from_the_best_one_is_counted_and_named():
    good, bad = {5: 1.0, 10: 1.2}, {5: 1.02, 10: 1.2}  # seed SD of the best: 0.014
    *_, within, worse = report({"48 rows, 1 times, seed 0": run(5, good), "48 rows, 1 times, seed 1": run(10, bad)})
    assert within == "within one seed SD of the best: 1 of 2"
    assert worse == "worse beyond noise: ['48 rows, 1 times, seed 1 (beaten by step 5)']"


def test_a_difference_inside_its_error_is_no_fault():
    lines = report(
        {
            f"48 rows, 1 times, seed {seed}": run(10, {5: 1.0 + 0.1 * seed, 10: 1.05 + 0.1 * seed}, 0.04)
            for seed in (0, 1)
        }
    )
    assert lines[-2:] == ["within one seed SD of the best: 2 of 2", "worse beyond noise: none"]
