"""A run's folder."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made
