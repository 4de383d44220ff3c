"""A flow that does nothing but ask: what the real one does after its promotion stage."""

from pathlib import Path

from prefect import flow

from lora_select.audit.ledger import in_folder
from lora_select.audit.promotion import Office
from lora_select.tracking.store import prepare
from tasks.approval import ask


@flow(name="asks", persist_result=True)
def asks(root: str, key: str, uri: str) -> str:
    """Ask for a run's approval."""
    office = Office(in_folder(root), prepare(uri, "test"))
    said = ask(office, Path(root) / key, "Version 1 met every criterion.")
    (Path(root) / "said").write_text(said)
    return said
