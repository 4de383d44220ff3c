"""The table of injected faults in docs/operations.md."""

import os
from pathlib import Path

import books
import pytest

from lora_select.audit.alias.promotion import Office

BEGIN, END = "<!-- faults of promotion: written by `make test-faults` -->", "<!-- end of faults of promotion -->"


@pytest.fixture(scope="session")
def outcomes():
    """Lines of the table in docs/operations.md; written into the file that LORA_SELECT_FAULT_TABLE names, if it has a place for them."""
    found: list[tuple[str, str]] = []
    yield found
    path = Path(os.environ.get("LORA_SELECT_FAULT_TABLE", ""))
    if found and path.is_file() and BEGIN in (text := path.read_text(encoding="utf-8")):
        lines = ["| injected | what came of it |", "|---|---|", *(f"| {what} | {came} |" for what, came in found)]
        head, rest = text.split(BEGIN)
        path.write_text(f"{head}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}", encoding="utf-8")


@pytest.fixture
def outcome(outcomes):
    """Adds a line to the table; called last in a test."""
    return lambda what, came: outcomes.append((what, came))


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def office(root, store) -> Office:
    return books.office(root, store)
