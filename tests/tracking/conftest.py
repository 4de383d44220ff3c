"""One migrated SQLite store per session, copied for each test: a fresh migration costs seconds."""

import shutil
from pathlib import Path

import pytest

from lora_select.tracking.store import Store, prepare


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mlflow-template")
    prepare(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def database(template, tmp_path) -> Path:
    """A migrated database of the test's own."""
    return Path(shutil.copy(template, tmp_path / "mlflow.db"))


@pytest.fixture
def store(database) -> Store:
    """Its experiment is the test's own: the template's one would put artifacts beside the template."""
    return prepare(f"sqlite:///{database}", "test")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run's folder."""
    made = tmp_path / "run"
    made.mkdir()
    return made
