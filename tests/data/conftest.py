"""Real rows that hold no two alike."""

import pytest

from benchmarks.gate import sources
from lora_select.data.gate import duplicates


@pytest.fixture(scope="session")
def prose():
    rows = sources.rows("docstrings", 440)
    gone = {flag.row_id for flag in (*duplicates.exact(rows), *duplicates.normal(rows))}
    return [item for item in rows if item.row_id not in gone][:400]
