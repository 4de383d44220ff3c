"""Every row once an epoch, whatever the ranks; a step is a pure function of seed and number."""

import pytest
from training_jobs import rows

from lora_select.training.worker import batches


@pytest.mark.parametrize(("count", "epochs", "size"), [(45, 1.0, 8), (45, 2.0, 8), (7, 3.0, 16), (100, 0.5, 16)])
def test_every_row_exactly_once_an_epoch(count, epochs, size):
    steps = batches.total_steps(count, epochs, size, None)
    seen = [n for step in range(steps) for n in batches.rows_of_step(count, epochs, size, 0, step)]
    assert len(seen) == round(count * epochs)
    for epoch in range(int(epochs)):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_order_depends_on_seed_and_epoch_alone():
    first = batches.rows_of_step(45, 2.0, 8, 0, 3)
    assert batches.rows_of_step(45, 2.0, 8, 0, 3) == first
    assert batches.rows_of_step(45, 2.0, 8, 1, 3) != first
    whole = [[n for step in range(6) for n in batches.rows_of_step(48, 2.0, 8, 0, step + 6 * e)] for e in (0, 1)]
    assert whole[0] != whole[1]


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("count", [1, 5, 24])
def test_rows_are_dealt_out_whole(ranks, accumulation, count):
    dealt = batches.micro_batches(rows(count), ranks, accumulation)
    assert len(dealt) == ranks
    assert all(len(parts) == accumulation for parts in dealt)
    flat = [row.row_id for parts in dealt for part in parts for row in part]
    assert sorted(flat) == sorted(row.row_id for row in rows(count))


def test_a_masked_row_has_no_label():
    assert not any(batches.masked(rows(1)[0]).label_mask)
