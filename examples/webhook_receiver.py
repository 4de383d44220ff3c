"""Receive MLflow's registered-model webhooks and check who sent them: `python examples/webhook_receiver.py --port 8787`.

MLflow signs each delivery with HMAC-SHA256 over `<delivery id>.<timestamp>.<body>` and the webhook's secret. A delivery is taken
when the signature holds, it is at most five minutes old, and its id was not seen before. The secret comes from the environment,
WEBHOOK_SECRET. What was taken is printed as one JSON line.
"""

import argparse
import base64
import contextlib
import hashlib
import hmac
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

TOLERANCE_S = 300
REMEMBERED = 10_000
MAX_BYTES = 1 << 20


def signature(secret: str, delivery: str, timestamp: str, body: bytes) -> str:
    """What MLflow's `X-MLflow-Signature` must read."""
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()


def fault(secret: str, headers: "Mapping[str, str] | Message", body: bytes, *, now: float) -> str | None:
    """Why a delivery is not taken, or None."""
    delivery, timestamp = headers.get("X-MLflow-Delivery-Id"), headers.get("X-MLflow-Timestamp")
    given = headers.get("X-MLflow-Signature")
    if not (delivery and timestamp and given):
        return "not signed"
    if not hmac.compare_digest(given.encode(), signature(secret, delivery, timestamp, body).encode()):
        return "the signature does not hold"
    if not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_S:
        return "too old"
    return None


class Seen:
    """The ids of the last deliveries: the same one twice is a replay."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    def is_new(self, delivery: str) -> bool:
        """Whether this id comes for the first time; it is remembered."""
        with self._lock:
            if delivery in self._ids:
                return False
            self._ids[delivery] = None
            if len(self._ids) > REMEMBERED:
                self._ids.popitem(last=False)
            return True


def server(secret: str, port: int, out=sys.stdout) -> ThreadingHTTPServer:
    """A receiver on loopback; TLS belongs to the proxy in front of it."""
    seen = Seen()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= MAX_BYTES:
                return self._answer(413, "too long")
            body = self.rfile.read(length)
            why = fault(secret, self.headers, body, now=time.time())
            if why:
                return self._answer(401, why)
            try:
                event = json.loads(body)
                line = json.dumps({"event": f"{event['entity']}.{event['action']}", **event["data"]})
            except (ValueError, KeyError, TypeError):
                return self._answer(400, "no event")
            if not seen.is_new(self.headers["X-MLflow-Delivery-Id"]):
                return self._answer(409, "seen before")
            print(line, file=out, flush=True)
            return self._answer(200, "taken")

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            """Headers hold nothing for a log."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> int:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8787)
    arguments = parser.parse_args()
    secret = os.environ.get("WEBHOOK_SECRET")
    if not secret:
        print("set WEBHOOK_SECRET to the secret that the webhook was created with", file=sys.stderr)
        return 2
    with server(secret, arguments.port) as receiver:
        print(f"listening on 127.0.0.1:{arguments.port}", file=sys.stderr)
        with contextlib.suppress(KeyboardInterrupt):
            receiver.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
