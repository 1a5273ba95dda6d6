"""A page in headless Chromium: what it says in the console, what is cut off, and a picture of it.

python tests/browser.py URL WIDTH PICTURE.png

A part of the page is cut off if it reaches out of the window and neither it nor anything around it
can be scrolled there.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

LOAD_PICTURES = """
Promise.all([...document.images].map(picture => {
  picture.loading = "eager";
  return picture.decode();
})).then(pictures => pictures.length)
"""

CUT_OFF = """
[...document.body.querySelectorAll("*")].filter(element => {
  const {left, right, width, height} = element.getBoundingClientRect();
  if (!width || !height || (left > -1 && right < document.documentElement.clientWidth + 1))
    return false;
  for (let around = element.parentElement; around !== document.body; around = around.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(around).overflowX))
      return around.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
  return true;
}).map(element => element.tagName + "." + element.getAttribute("class") + ": "
  + element.textContent.trim().slice(0, 60))
"""


@dataclass
class Seen:
    """What the browser saw of a page."""

    told: list[str]  # warnings and errors in the console, and what could not be loaded
    cut_off: list[str]  # the elements that are cut off
    text: str
    picture: bytes  # the whole page as PNG


def look_at(url: str, width: int) -> Seen:
    """Open a page in a window of `width` pixels, and return what is seen of it."""
    with _browser() as tab:
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.ask(f"{domain}.enable")
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        tab.ask("Emulation.setDeviceMetricsOverride", **screen)
        tab.ask("Page.navigate", url=url)
        tab.wait_for("Page.loadEventFired")
        tab.value(LOAD_PICTURES)
        cut_off = tab.value(CUT_OFF)
        text = tab.value("document.body.innerText")
        height = tab.value("document.documentElement.scrollHeight")
        tab.ask("Emulation.setDeviceMetricsOverride", **{**screen, "height": height})
        picture = base64.b64decode(tab.ask("Page.captureScreenshot", format="png")["data"])
        return Seen(tab.told(), cut_off, text, picture)


class _Tab:
    """A connection to a tab by Chromium's DevTools protocol."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, script: str) -> Any:
        """Return the value of a script."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def wait_for(self, event: str) -> None:
        """Wait until an event has come."""
        while not any(e["method"] == event for e in self._events):
            self._receive()

    def told(self) -> list[str]:
        """Return the warnings and errors so far."""
        found = []
        for event in self._events:
            of = event["params"]
            match event["method"]:
                case "Runtime.consoleAPICalled" if of["type"] in ("warning", "error"):
                    found.append(str(of["args"]))
                case "Runtime.exceptionThrown":
                    found.append(of["exceptionDetails"]["text"])
                case "Log.entryAdded" if of["entry"]["level"] in ("warning", "error"):
                    found.append(of["entry"]["text"])
                case "Network.loadingFailed":
                    found.append(of["errorText"])
        return found

    def _receive(self) -> dict[str, Any]:
        message = json.loads(self._connection.recv(timeout=60))
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def _browser() -> Iterator[_Tab]:
    """Start a Chromium, and connect to its only tab."""
    assert CHROMIUM, "Chromium is not installed"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr
            line = next(line for line in process.stderr if line.startswith("DevTools listening on"))
            with connect(line.split()[-1], max_size=None) as browser:
                targets = _Tab(browser).ask("Target.getTargets")["targetInfos"]
            page = next(t["targetId"] for t in targets if t["type"] == "page")
            address = line.split()[-1].partition("/devtools/")[0] + f"/devtools/page/{page}"
            with connect(address, max_size=None) as tab:
                yield _Tab(tab)
        finally:
            process.terminate()
            process.wait(30)
            assert process.stderr
            process.stderr.close()


if __name__ == "__main__":
    seen = look_at(sys.argv[1], int(sys.argv[2]))
    print("console:", seen.told or "nothing")
    print("cut off:", *(seen.cut_off or ["nothing"]), sep="\n  ")
    Path(sys.argv[3]).write_bytes(seen.picture)
