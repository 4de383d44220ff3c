"""The receiver takes what MLflow itself sends and signs, and nothing else."""

import importlib.util
import io
import json
import threading
import time
from pathlib import Path

import pytest
import requests

SECRET = "a secret"


@pytest.fixture
def example():
    path = Path(__file__).parents[2] / "examples" / "webhook_receiver.py"
    specification = importlib.util.spec_from_file_location("webhook_receiver", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def receiver(example):
    out = io.StringIO()
    server = example.server(SECRET, 0, out)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", out
    server.shutdown()
    thread.join()
    server.server_close()


def delivered(address, example, *, secret=SECRET, age=0, delivery="one", body=None, send=None):
    body = body or json.dumps({"entity": "registered_model", "action": "created", "data": {"name": "m"}}).encode()
    stamp = str(int(time.time()) - age)
    headers = {
        "X-MLflow-Delivery-Id": delivery,
        "X-MLflow-Timestamp": stamp,
        "X-MLflow-Signature": example.signature(secret, delivery, stamp, body),
    }
    return requests.post(address, data=send or body, headers=headers, timeout=10).status_code


def test_an_alias_that_moves_in_a_real_registry_is_received(receiver, tmp_path, monkeypatch):
    """MLflow's own delivery, over http to loopback, which it allows only where these two variables are set."""
    from mlflow.entities.webhook import WebhookAction, WebhookEntity, WebhookEvent
    from mlflow.webhooks import delivery

    from lora_select.tracking.store import prepare

    address, out = receiver
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")
    monkeypatch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")
    store = prepare(f"sqlite:///{tmp_path}/mlflow.db")
    store.client.create_webhook("champion-moved", address, ["model_version_alias.created"], secret=SECRET)
    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    moved = {"name": "tweets", "version": "1", "alias": "champion"}
    # What an MLflow server calls after it has moved an alias; a client on SQLite has no server.
    delivery.deliver_webhook(event=event, payload=moved, store=store.client._get_registry_client().store)
    until = time.monotonic() + 30
    while not out.getvalue() and time.monotonic() < until:
        time.sleep(0.05)
    taken = json.loads(out.getvalue().splitlines()[0])
    assert taken == {"event": "model_version_alias.created", **moved}


def test_what_is_not_signed_with_the_secret_is_not_taken(receiver, example):
    address, out = receiver
    assert requests.post(address, data=b"{}", timeout=10).status_code == 401
    assert delivered(address, example, secret="another") == 401
    assert delivered(address, example, age=600) == 401
    assert delivered(address, example, send=b'{"entity": "x", "action": "y", "data": {}}') == 401
    assert out.getvalue() == ""


def test_a_replay_is_not_taken_twice(receiver, example):
    address, out = receiver
    assert [delivered(address, example) for _ in range(2)] == [200, 409]
    assert delivered(address, example, delivery="two") == 200
    assert len(out.getvalue().splitlines()) == 2


def test_names_of_headers_have_no_case_and_what_is_no_event_may_come_again(receiver, example):
    address, out = receiver
    for body, status in ((b"[]", 400), (b"{", 400), (None, 200)):
        body = body or json.dumps({"entity": "a", "action": "b", "data": {}}).encode()
        stamp = str(int(time.time()))
        headers = {"x-mlflow-delivery-id": "one", "x-mlflow-timestamp": stamp}
        headers["x-mlflow-signature"] = example.signature(SECRET, "one", stamp, body)
        assert requests.post(address, data=body, headers=headers, timeout=10).status_code == status
    assert json.loads(out.getvalue()) == {"event": "a.b"}


def test_our_signature_is_mlflows(example):
    from mlflow.webhooks.delivery import _generate_hmac_signature

    body = '{"name": "Käse"}'
    assert example.signature(SECRET, "id", "17", body.encode()) == _generate_hmac_signature(SECRET, "id", "17", body)
