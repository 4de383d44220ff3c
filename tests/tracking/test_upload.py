import json
import os

import mlflow_samples as samples
import pytest
from mlflow.exceptions import MlflowException

from lora_select.tracking import names, runs
from lora_select.tracking.upload import STEPS_PER_BATCH, Shipment, newer, ship


@pytest.fixture
def shipment(store, folder) -> Shipment:
    return Shipment(store, runs.find_or_create_parent(store, "key", name="x"), folder / "metrics.jsonl")


def steps_in_mlflow(shipment: Shipment, key: str = names.TRAIN_LOSS) -> list[int]:
    return [metric.step for metric in shipment.store.client.get_metric_history(shipment.run_id, key)]


class Down:
    """A client whose calls fail after `answers` more of them; `arrives` says whether the failing call took effect."""

    def __init__(self, client, answers=0, *, arrives=False):
        self.client, self.answers, self.arrives = client, answers, arrives

    def __getattr__(self, name):
        def call(*args, **arguments):
            self.answers -= 1
            if self.answers < 0:
                if self.arrives:
                    getattr(self.client, name)(*args, **arguments)
                raise MlflowException("connection refused")
            return getattr(self.client, name)(*args, **arguments)

        return call


def with_client(shipment: Shipment, client) -> Shipment:
    store = shipment.store
    return Shipment(
        type(store)(store.uri, store.experiment, store.experiment_id, client), shipment.run_id, shipment.path
    )


def test_no_file_yet(shipment):
    assert ship(shipment) == 0


def test_each_step_once_while_the_file_grows(shipment):
    certain = False
    for start in range(1, 40, 13):
        samples.steps(shipment.path, range(start, start + 13))
        assert ship(shipment, certain=certain) == 0
        assert ship(shipment) == 0
        certain = True
    assert steps_in_mlflow(shipment) == list(range(1, 40))
    for key in names.TRAIN_STEP.values():
        looked = [step for step in range(1, 40) if key != "validation/loss" or step % samples.LOOK_EVERY == 0]
        assert steps_in_mlflow(shipment, key) == looked
    assert json.loads(shipment.note.read_text()) == {shipment.run_id: 39}


def test_more_steps_than_a_batch_takes(shipment):
    samples.steps(shipment.path, range(2 * STEPS_PER_BATCH + 5))
    assert ship(shipment) == 0
    assert sorted(steps_in_mlflow(shipment)) == list(range(2 * STEPS_PER_BATCH + 5))


def test_half_a_line_waits_and_a_torn_line_is_passed_over(shipment):
    samples.steps(shipment.path, range(1, 3))
    with shipment.path.open("a") as stream:
        stream.write('{"step": 3, "lo')
    assert ship(shipment) == 0
    with shipment.path.open("a") as stream:
        stream.write("\n[]\n7\n")
    samples.steps(shipment.path, range(3, 5))
    assert ship(shipment, certain=True) == 0
    assert steps_in_mlflow(shipment) == [1, 2, 3, 4]


def test_a_file_cut_back_on_resume_repeats_nothing(shipment):
    samples.steps(shipment.path, range(1, 11))
    assert ship(shipment) == 0
    shipment.path.unlink()
    samples.steps(shipment.path, range(1, 6))
    samples.steps(shipment.path, range(6, 15), timestamp_ms=1_800_000_000_000)  # again, at another time
    assert ship(shipment) == 0
    assert steps_in_mlflow(shipment) == list(range(1, 15))


def test_steps_done_again_without_cutting_back_count_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    samples.steps(path, range(1, 11))
    samples.steps(path, range(8, 13), start=9.0)
    assert [line["step"] for line in newer(path, 0)] == list(range(1, 13))
    assert newer(path, 0)[7]["loss"] > 6
    assert [line["step"] for line in newer(path, 10)] == [11, 12]


@pytest.mark.parametrize("note", [None, "old", "torn", "other run"])
def test_a_kill_between_sending_and_noting_repeats_nothing(shipment, note):
    samples.steps(shipment.path, range(1, 11))
    assert ship(shipment) == 0
    if note is None:
        shipment.note.unlink()
    else:
        text = {"old": json.dumps({shipment.run_id: 4}), "torn": '{"', "other run": '{"abc": 99}'}[note]
        shipment.note.write_text(text)
    shipment.path.unlink()
    samples.steps(shipment.path, range(1, 16), timestamp_ms=1_800_000_000_000)
    assert ship(shipment) == 0
    assert steps_in_mlflow(shipment) == list(range(1, 16))


@pytest.mark.parametrize("answers", [0, 2])
@pytest.mark.parametrize("arrives", [False, True])
def test_an_outage_at_any_call_is_told_and_made_up_for(shipment, answers, arrives):
    samples.steps(shipment.path, range(1, 2 * STEPS_PER_BATCH + 11))
    left = ship(with_client(shipment, Down(shipment.store.client, answers, arrives=arrives)))
    complete = 1 + 3
    assert left == 0 if answers >= complete else left > 0
    samples.steps(shipment.path, range(2 * STEPS_PER_BATCH + 11, 2 * STEPS_PER_BATCH + 20))
    assert ship(shipment) == 0
    assert sorted(steps_in_mlflow(shipment)) == list(range(1, 2 * STEPS_PER_BATCH + 20))


def test_a_new_run_gets_everything(shipment):
    samples.steps(shipment.path, range(1, 6))
    ship(shipment)
    again = runs.find_or_create_parent(shipment.store, "other key", name="y")
    second = Shipment(shipment.store, again, shipment.path)
    assert ship(second) == 0
    assert steps_in_mlflow(second) == [1, 2, 3, 4, 5]
    assert set(json.loads(shipment.note.read_text())) == {shipment.run_id, again}


def test_a_refusal_is_not_an_outage(shipment):
    samples.steps(shipment.path, range(1, 3))
    shipment.store.client.delete_run(shipment.run_id)
    with pytest.raises(MlflowException):
        ship(shipment)


def test_a_real_kill_in_mid_shipping_repeats_nothing(shipment):
    """The process dies right after the first batch arrived, before it can note it."""
    samples.steps(shipment.path, range(1, 3 * STEPS_PER_BATCH))
    pid = os.fork()
    if pid == 0:
        import lora_select.tracking.upload as module

        module._note = lambda *_: os._exit(9)
        ship(Shipment(shipment.store, shipment.run_id, shipment.path))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(steps_in_mlflow(shipment)) == STEPS_PER_BATCH
    assert ship(shipment) == 0
    assert sorted(steps_in_mlflow(shipment)) == list(range(1, 3 * STEPS_PER_BATCH))
