"""What the ledger and the registry say after promotions and rollbacks: always the same."""

import dataclasses
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import books
import pytest
from books import BLOCKED, MODEL, PASSED, champion, finish, in_order, kinds, promoted

from lora_select import records
from lora_select.audit import run_entries
from lora_select.audit.alias import approval, standing
from lora_select.audit.alias.approval import Answer
from lora_select.audit.alias.champion import AWAY, answered, key_part, rival_of
from lora_select.audit.alias.promotion import AWAITING, DEFERRED, Office, alone, promote, recover
from lora_select.audit.alias.withdrawal import rollback
from lora_select.audit.books import anchor
from lora_select.audit.verification import verify
from lora_select.config import PromotionConfig
from lora_select.errors import InputError, WorldError
from lora_select.pipeline import workspace
from lora_select.pipeline.history import is_over
from lora_select.records import Adapter, Evaluation, MetricComparison, Promotion, read
from lora_select.tracking import names, registry
from lora_select.tracking.store import prepare

ANN = Answer("Ann", "reads well")


def test_a_passed_adapter_becomes_champion_and_the_ledger_says_on_what(office, root):
    run, made = finish(office, root)
    assert (made.alias, made.version, made.previous_champion) == ("champion", "1", None)
    assert champion(office) == "1"
    assert kinds(office) == ["opened", "decision", "promotion-intended", "promoted", "run"]
    promoted = office.ledger.of(model=MODEL)[2]
    assert {"adapter", "evaluation", "profile", "library", "packages"} <= promoted.digests.keys()
    assert promoted.details["aliases"] == {"challenger": "1", "champion": "1"}
    anchor.push(office.ledger, office.store)
    in_order(office)
    assert verify(run, office.store).faults == ()
    tags = office.store.client.get_model_version(MODEL, "1").tags
    assert tags["evaluation.sha256"] == promoted.digests["evaluation"]
    assert office.store.client.get_registered_model(MODEL).tags["ledger.head"].split()[0] == "4"


def test_a_blocked_adapter_stays_a_challenger(office, root):
    _, made = finish(office, root, judgement=BLOCKED)
    assert (made.alias, champion(office)) == ("challenger", None)
    challenger = registry.by_alias(office.store, MODEL, names.CHALLENGER)
    assert challenger is not None
    assert challenger.version == "1"


def test_promoted_again_moves_nothing(office, root):
    run, _ = finish(office, root)
    count = len(kinds(office))
    made = promote(office, books.candidate(office, run), PASSED)
    assert (made.alias, made.version) == ("champion", "1")
    assert len(kinds(office)) == count


def test_a_champion_that_changed_since_the_comparison_is_not_replaced(office, root):
    finish(office, root)
    _, made = finish(office, root, "r2", "dora", compared_with=None)
    assert (made.alias, champion(office)) == ("challenger", "1")
    assert "the champion is version 1" in made.reasons[-1]
    _, made = finish(office, root, "r3", "rslora", compared_with="1")
    assert (made.alias, made.previous_champion, champion(office)) == ("champion", "1", "3")


def test_an_old_config_again_does_not_claim_a_champion_that_is_another(office, root):
    """The alias is read afresh, whatever an earlier run of the same key was told."""
    run, _ = finish(office, root)
    finish(office, root, "r2", "dora", compared_with="1")
    assert champion(office) == "2"
    made = promote(office, books.candidate(office, run, compared_with=None), PASSED)
    assert (made.alias, champion(office)) == ("challenger", "2")


def test_a_changed_adapter_is_not_promoted(office, root):
    run = books.finished_run(root)
    candidate = books.candidate(office, run)
    with (candidate.folder / "adapter" / "adapter_model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(WorldError, match=r"adapter_model.safetensors was changed"):
        promote(office, candidate, PASSED)
    assert kinds(office) == []
    assert champion(office) is None


def _promote(root: Path, uri: str, run: Path) -> None:
    office = books.office(root, prepare(uri, "test"))
    promote(office, books.candidate(office, run, None), PASSED)


@pytest.mark.fault
def test_two_promotions_at_once_make_one_champion(office, root, outcome):
    made = [books.finished_run(root, "r1"), books.finished_run(root, "r2", "dora")]
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_promote, args=(root, office.store.uri, run)) for run in made]
    for one in both:
        one.start()
    for one in both:
        one.join()
        assert one.exitcode == 0
    assert kinds(office).count("promoted") == 1
    assert champion(office) == "1"  # the second was compared with none, and there is one now
    in_order(office)
    outcome(
        "two promotions at once, by two processes", "one champion; the other stays a challenger, compared with none"
    )


def test_back_to_the_version_before_and_forth(office, root):
    finish(office, root)
    finish(office, root, "r2", "dora", compared_with="1")
    entry = rollback(office, MODEL, by="Ann", reason="answers got rude")
    assert (entry.kind, entry.by, champion(office)) == ("rolled-back", "Ann", "1")
    assert entry.details["before"] == {"champion": "2"}
    in_order(office)
    assert office.store.client.get_model_version(MODEL, "1").tags["gate.reasons"] == "answers got rude"
    with pytest.raises(InputError, match="version 1 is the champion of tweets already"):
        rollback(office, MODEL, by="Ann", reason="x", to="1")
    rollback(office, MODEL, by="Ann", reason="they did not", to="2")
    assert champion(office) == "2"
    in_order(office)


def test_the_same_command_does_not_promote_what_was_taken_back(office, root):
    finish(office, root)
    run = books.finished_run(root, "r2", "dora")
    folder = workspace.folder_of(root, "evaluation", "r2evaluation")
    told = read(Evaluation, folder / "record.json")
    better = MetricComparison(2.0, 1.0, -1.0, (-1.01, -0.99), 80, "nats/token", "lower", True, 0.005)
    judged = dataclasses.replace(
        told, metrics={"loss": better}, against={"champion": {"loss": better}}, champion_version="1"
    )
    workspace.write(folder, judged)
    ref = workspace.finished(root, "evaluation", "r2evaluation")
    assert ref is not None
    workspace.view(root, "r2", ref, "evaluation")
    first = promoted(office, run)
    assert (first.record.alias, champion(office)) == ("champion", "2")
    rollback(office, MODEL, by="Ann", reason="answers got rude")
    for reused in (False, True, True):
        made = promoted(office, run)
        assert (made.record.alias, made.reused, champion(office)) == ("challenger", reused, "1")
    assert "Ann took this adapter back" in made.record.reasons[-1]
    assert "answers got rude" in made.record.reasons[-1]
    run_entries.closed(run, model=MODEL)
    with pytest.raises(InputError, match="does not meet every criterion: Ann took this adapter back"):
        approval.approve(office, run, ANN)
    approval.approve(office, run, dataclasses.replace(ANN, override=True))
    [approved] = [entry for entry in office.ledger.entries() if entry.kind == "approved"]
    assert (approved.details["override"], champion(office)) == (["taken-back"], "2")
    assert promoted(office, run).record.alias == "champion"
    in_order(office)


@pytest.mark.parametrize(("to", "words"), [("7", "no version 7"), (None, "knows no champion")])
def test_nothing_to_go_back_to(office, root, to, words):
    finish(office, root)
    with pytest.raises(InputError, match=words):
        rollback(office, MODEL, by="Ann", reason="x", to=to)
    assert champion(office) == "1"


@pytest.mark.parametrize("harm", ["gone", "changed", "tag"])
def test_a_version_whose_files_are_gone_or_changed_is_refused(office, root, harm):
    finish(office, root)
    finish(office, root, "r2", "dora", compared_with="1")
    version = registry.by_number(office.store, MODEL, "1")
    assert version is not None
    place = Path(office.store.client.get_run(version.run_id).info.artifact_uri.removeprefix("file://")) / "adapter"
    weights = place / "adapter_model.safetensors"
    if harm == "gone":
        weights.unlink()
    elif harm == "changed":
        weights.write_text("weights of lora 9")
    else:
        office.store.client.set_model_version_tag(MODEL, "1", names.ADAPTER_FILES, "{}")
    with pytest.raises(WorldError, match=r"version 1 of tweets .*nothing was moved"):
        rollback(office, MODEL, by="Ann", reason="x", to="1")
    assert champion(office) == "2"
    in_order(office)


def test_an_alias_moved_by_hand_is_seen_and_entered(office, root):
    finish(office, root)
    finish(office, root, "r2", "dora", compared_with="1")
    office.store.client.set_registered_model_alias(MODEL, names.CHAMPION, "1")
    [line] = standing.unexplained(office.ledger.entries(), office.store)
    assert "version 1 in MLflow and version 2 in the ledger" in line
    with alone(office.ledger, MODEL):
        [found] = recover(office, MODEL)
    assert (found.kind, found.details["aliases"]) == ("found-moved", {"champion": "1"})
    assert standing.unexplained(office.ledger.entries(), office.store) == []


def test_mlflow_away_defers_and_the_next_try_promotes(office, root, monkeypatch):
    run = books.finished_run(root)
    candidate = books.candidate(office, run)
    real = office.store.client.get_model_version_by_alias

    from mlflow.exceptions import MlflowException

    def down(*args):
        raise MlflowException("connection refused")

    monkeypatch.setattr(office.store.client, "get_model_version_by_alias", down)
    made = promote(office, candidate, PASSED)
    assert (made.alias, made.version) == (DEFERRED, "")
    assert kinds(office) == ["opened", "promotion-deferred"]
    monkeypatch.setattr(office.store.client, "get_model_version_by_alias", real)
    assert promote(office, candidate, PASSED).alias == "champion"


def test_a_database_that_went_away_defers_too(office, root, monkeypatch):
    """Where no server stands between, SQLAlchemy's own error comes through MLflow's client."""
    from sqlalchemy.exc import OperationalError

    candidate = books.candidate(office, books.finished_run(root))

    def down(*_):
        raise OperationalError("select", {}, Exception("server closed the connection"))

    monkeypatch.setattr(office.store.client, "get_model_version_by_alias", down)
    assert promote(office, candidate, PASSED).alias == DEFERRED
    assert kinds(office) == ["opened", "promotion-deferred"]
    for look_up in (lambda: registry.by_alias(office.store, MODEL), lambda: champion(office)):
        with pytest.raises(WorldError, match="cannot look up"):
            look_up()


def test_mlflow_away_in_the_middle_leaves_a_promise_that_is_kept(office, root, monkeypatch):
    from mlflow.exceptions import MlflowException

    run = books.finished_run(root)
    candidate = books.candidate(office, run)
    real = office.store.client.set_registered_model_alias

    def down(*args):
        raise MlflowException("connection refused")

    monkeypatch.setattr(office.store.client, "set_registered_model_alias", down)
    assert promote(office, candidate, PASSED).alias == DEFERRED
    monkeypatch.setattr(office.store.client, "set_registered_model_alias", real)
    assert promote(office, candidate, PASSED).alias == "champion"
    assert kinds(office).count("promoted") == 1
    in_order(office)


def test_what_a_judgement_and_a_promotion_are_kept_under(office, root):
    """Another champion is another evaluation; the adapter's own promotion is none."""
    run, _ = finish(office, root)
    second = books.finished_run(root, "r2", "dora")
    digest = read(Adapter, run_entries.stages(second)["adapter"].folder / "record.json").digest
    first_digest = read(Adapter, run_entries.stages(run)["adapter"].folder / "record.json").digest
    told = (office.store, root, "r2", MODEL, digest)
    before = (rival_of(*told), key_part(*told))
    assert before[0].startswith("1 ")
    promote(office, books.candidate(office, second, "1"), PASSED)
    assert rival_of(*told) == before[0]
    assert key_part(*told) == before[1]
    assert rival_of(office.store, root, "r1", MODEL, first_digest).startswith("2 ")
    asked = office.ledger.entries()[-1].sequence + 1
    rollback(office, MODEL, by="Ann", reason="answers got rude")
    assert key_part(*told) == f"{before[1]} taken back {asked}"


def test_the_same_command_makes_what_was_deferred_in_the_middle(office, root, monkeypatch):
    from mlflow.exceptions import MlflowException

    run = books.finished_run(root)
    records.write_text(run / "report.json", "{}")

    def down(*_):
        raise MlflowException("connection refused")

    with monkeypatch.context() as away:
        away.setattr(office.store.client, "set_registered_model_alias", down)
        for _ in range(2):  # away again: it is tried again
            made = promoted(office, run)
            assert (made.record.alias, made.reused) == (DEFERRED, False)
            assert not is_over(run, tracked=True)
            assert is_over(run, tracked=False)
    made = promoted(office, run)
    assert (made.record.alias, made.record.version, champion(office)) == ("champion", "1", "1")
    assert is_over(run, tracked=True)
    assert promoted(office, run).reused
    in_order(office)


def test_the_same_command_finds_its_promotion_as_it_made_it(office, root):
    run = books.finished_run(root)
    first = promoted(office, run)
    assert (first.record.alias, first.reused, promoted(office, run).reused) == ("champion", False, True)


def test_the_same_command_finds_its_request_until_it_is_answered(office, root):
    run = books.finished_run(root)
    policy = PromotionConfig(approval="required")
    first, second = (promoted(office, run, policy) for _ in range(2))
    assert (first.record.alias, first.reused, second.reused) == (AWAITING, False, True)
    records.write_text(run / "report.json", "{}")
    run_entries.closed(run, model=MODEL)
    assert is_over(run, tracked=True)
    approval.approve(office, run, ANN)
    assert not is_over(run, tracked=True)  # its records say that it waits
    third, fourth = (promoted(office, run, policy) for _ in range(2))
    assert (third.record.alias, third.reused, fourth.reused) == ("champion", False, True)


def test_each_expiry_is_another_key_and_is_gone_on_with(office, root):
    run, _ = finish(office, root, approval="required", approval_days=2)
    records.write_text(run / "report.json", "{}")
    records.write(run / "promotion.json", Promotion(MODEL, "1", AWAITING, None, ()))
    assert is_over(run, tracked=True)
    said = [answered(office.ledger.entries(), "r1")]
    for days in (3, 6):
        late = dataclasses.replace(office.ledger, clock=lambda days=days: datetime.now(UTC) + timedelta(days=days))
        assert not is_over(run, tracked=True, now=late.clock())
        said.append(answered(late.entries(), "r1", now=late.clock()))
        promote(Office(late, office.store), books.candidate(office, run), PASSED, approval="required", approval_days=2)
        assert answered(late.entries(), "r1", now=late.clock()) == said[-1]
    requests = [entry.sequence for entry in office.ledger.entries() if entry.kind == "approval-requested"]
    assert said == ["", f"expired {requests[0]}", f"expired {requests[1]}"]


def test_mlflow_away_while_the_judged_rival_is_looked_up_is_an_answer(office, root, monkeypatch):
    from mlflow.exceptions import MlflowException

    finish(office, root)
    run, _ = finish(office, root, "r2", "dora", compared_with="1")
    digest = read(Adapter, run_entries.stages(run)["adapter"].folder / "record.json").digest

    def down(*_):
        raise MlflowException("connection refused")

    monkeypatch.setattr(office.store.client, "get_model_version", down)
    assert rival_of(office.store, root, "r2", MODEL, digest) == AWAY
