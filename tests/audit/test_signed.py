"""Where a public key is named, no adapter without a signature that holds is promoted, approved, taken back to, verified or exported."""

import shutil

import books
import pytest
from signing_keys import make_key

from lora_select import records
from lora_select.audit import run_entries, signature
from lora_select.audit.alias import approval
from lora_select.audit.alias.approval import Answer
from lora_select.audit.alias.withdrawal import rollback
from lora_select.audit.verification import verify
from lora_select.errors import InputError, WorldError
from lora_select.pipeline import workspace


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """A function that names both keys of the environment, or takes a name away."""
    made = {name: make_key(tmp_path / f"{name}.pem")[0] for name in ("ann", "bob")}

    def name(signs: str | None, asked: str | None) -> None:
        for variable, path in (
            (signature.SIGNING_KEY, signs and made[signs]),
            (signature.VERIFY_KEY, asked and made[asked].with_suffix(".pub")),
        ):
            monkeypatch.setenv(variable, str(path)) if path else monkeypatch.delenv(variable, raising=False)

    return name


def signed(run, key: signature.SigningKey) -> None:
    """The run's evidence stage with the signature of its adapter, as the line leaves it."""
    adapter = run_entries.adapter_folder(run)
    folder = workspace.folder_of(run.parent, "evidence", f"{run.name}evidence")
    folder.mkdir(parents=True)
    signature.sign(adapter, folder / signature.ADAPTER_SIGNATURE, key)
    card = records.file_ref(folder / signature.ADAPTER_SIGNATURE, folder)
    digest = records.read(records.Adapter, run_entries.stages(run)["adapter"].folder / "record.json").digest
    made = records.EvidenceFiles(card, card, None, None, card, None, digest, "x", ())
    workspace.write(folder, made)
    ref = workspace.finished(run.parent, "evidence", f"{run.name}evidence")
    assert ref is not None
    workspace.view(run.parent, run.name, ref, "evidence")


def test_the_line_promotes_only_what_its_key_signs(office, root, keys):
    run = books.finished_run(root)
    for signs, asked in ((None, "ann"), ("bob", "ann")):
        keys(signs, asked)
        with pytest.raises(WorldError, match="not signed|does not hold"):
            books.promoted(office, run)
        assert books.kinds(office) == []
    keys("ann", "ann")
    made = books.promoted(office, run)
    assert made.record.version == "1"
    assert (made.folder / signature.ADAPTER_SIGNATURE).is_file()


def test_keys_that_are_no_pair_are_told_before_anything_is_trained(keys):
    keys("ann", "ann")
    signature.ready()
    keys("ann", None)
    signature.ready()
    for signs, word in ((None, "no key signs"), ("bob", "no pair")):
        keys(signs, "ann")
        with pytest.raises(InputError, match=word):
            signature.ready()


def test_verify_and_approval_want_the_signature(office, root, keys):
    run, _ = books.finish(office, root, approval="required")
    assert verify(run).faults == ()
    keys("ann", "ann")
    [fault] = verify(run).faults
    assert "is not signed" in fault
    with pytest.raises(WorldError, match="is not signed"):
        approval.approve(office, run, Answer("Ann", "reads well"))
    assert books.champion(office) is None
    keys("ann", None)
    run_entries.opened(run)
    signed(run, signature.signing_key())
    run_entries.closed(run, model=books.MODEL)
    keys(None, "bob")
    assert "does not hold" in verify(run).faults[0]
    keys(None, "ann")
    assert verify(run).faults == ()
    approval.approve(office, run, Answer("Ann", "reads well"))
    assert books.champion(office) == "1"


def test_an_export_takes_a_signed_adapter_alone(office, root, keys, tmp_path):
    run = books.finished_run(root)
    folder = run_entries.adapter_folder(run)
    keys("ann", "ann")
    with pytest.raises(WorldError, match="is not signed"):
        run_entries.adapter_folder(run)
    plain = shutil.copytree(folder, tmp_path / "got" / "plain")
    with pytest.raises(WorldError, match="is not signed"):
        run_entries.adapter_folder(plain)
    signature.sign(plain, plain.parent / signature.ADAPTER_SIGNATURE, signature.signing_key())
    assert run_entries.adapter_folder(plain) == plain
    (plain / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(WorldError, match="does not hold"):
        run_entries.adapter_folder(plain)


def test_a_rollback_leads_to_a_signed_version_alone(office, root, keys):
    first, _ = books.finish(office, root)
    books.finish(office, root, "r2", "dora", compared_with="1")
    keys("ann", "ann")
    with pytest.raises(WorldError, match="is not signed"):
        rollback(office, books.MODEL, by="Ann", reason="rude")
    assert books.champion(office) == "2"
    keys("ann", None)
    signed(first, signature.signing_key())
    keys(None, "ann")
    rollback(office, books.MODEL, by="Ann", reason="rude")
    assert books.champion(office) == "1"
