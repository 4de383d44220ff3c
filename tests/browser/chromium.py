"""Opens a page in headless Chromium, waits for its text, takes a picture. No driver package: DevTools over a websocket.

By hand, for the pictures in the documentation:
`python tests/browser/chromium.py LINK OUT.png --wait TEXT [TEXT...] [--size 1800x700]`
"""

import argparse
import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
BEFORE_THE_PAGE = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
"""MLflow opens a chat panel over a third of the page on the first visit."""


def executable() -> str | None:
    """Chromium or Chrome on this machine, None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Page:
    """One open page; `ask` is one DevTools command."""

    socket: Any
    count: int = 0

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def evaluate(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def text(self) -> str:
        """What a person reads on the page, charts included."""
        return self.evaluate("document.body ? document.body.innerText + ' ' + [...document.querySelectorAll('svg text')]"
                             ".map(t => t.textContent).join(' ') : ''") or ""  # fmt: skip

    def wait_for(self, texts: Sequence[str], *, seconds: float = 180.0) -> str:
        """The page's text once it holds all of `texts`."""
        until = time.monotonic() + seconds
        while missing := [text for text in texts if text not in (seen := self.text())]:
            assert time.monotonic() < until, f"the page never showed {missing}; it shows: {seen[:2000]}"
            time.sleep(0.25)
        return seen

    def picture(self, path: Path) -> None:
        time.sleep(1.0)  # charts fade in
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def opened(link: str, size: tuple[int, int] = (2400, 900)) -> Iterator[Page]:
    """A fresh browser with one page that goes to `link`; closed at the end of the block."""
    from websockets.sync.client import connect

    program = executable()
    assert program, "no Chromium on this machine: apt-get install chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        size_flag = f"--window-size={size[0]},{size[1]}"
        command = [program, *FLAGS, size_flag, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_page_socket(Path(profile), process), max_size=None) as socket:
                page = Page(socket)
                page.ask("Page.enable")
                page.ask("Page.addScriptToEvaluateOnNewDocument", source=BEFORE_THE_PAGE)
                page.ask("Page.navigate", url=link)
                yield page
        finally:
            process.terminate()
            process.wait(timeout=30)


def _page_socket(profile: Path, process: subprocess.Popen) -> str:
    """The address of the one page's DevTools socket."""
    until = time.monotonic() + 60
    note = profile / "DevToolsActivePort"
    while not (note.exists() and note.read_text().strip()):
        assert process.poll() is None, "Chromium stopped at its start"
        assert time.monotonic() < until, "Chromium did not open its DevTools port"
        time.sleep(0.1)
    port = note.read_text().splitlines()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
        pages = json.loads(answer.read())
    return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")


def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a page once it shows the given texts.")
    parser.add_argument("link")
    parser.add_argument("out", type=Path)
    parser.add_argument("--wait", nargs="*", default=[])
    parser.add_argument("--size", default="2400x900")
    parsed = parser.parse_args()
    width, height = map(int, parsed.size.split("x"))
    with opened(parsed.link, (width, height)) as page:
        page.wait_for(parsed.wait)
        page.picture(parsed.out)


if __name__ == "__main__":
    main()
