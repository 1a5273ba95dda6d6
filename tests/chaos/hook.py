"""The hook that sees every write of a process below a folder, and does harm there.

It is installed as an audit hook of Python, so it sees what Python opens for writing, renames and
removes, and what makes folders; writes of native code are not seen. The environment variable
CHAOS_PLAN names a JSON file, which holds:

* `root`: the folder;
* `trace`: a file to which every place of a write is appended;
* `kills`: a list of harms with `place`, `who`, `delay` in seconds and `done`, the file that says
  that the harm has been done. The process that comes to the place kills `who` after the delay:
  itself (`writer`), the process of the command (`driver`), `raylet`, or `everyone`;
* `holds`: a list of `place` and `done`. The first process that comes to the place writes its number
  into the file `done` and waits there until it is killed;
* `faults`: a file to which places are appended. At the first place that is not in it the process
  loses its disk: this write and all that follow fail with the error `errno`.

It uses only Python's standard library, because all processes of Ray import it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = {"open": "write", "os.mkdir": "mkdir", "os.rename": "rename", "os.remove": "remove"}
_RANDOM = (
    (re.compile(r"(?<=[.-])[0-9a-f]{8}(?=$|\.json)"), "x"),  # temporary files, logs of epochs
    (re.compile(r"(?<=/)(\.|tmp|\.tmp)[a-z0-9_]{8}(?=/|$)"), "tmp"),  # temporary folders
    (re.compile(r"^/tmp/[a-z0-9_]{8}$"), "/tmp/tmp"),  # by which tempfile tries the folder
    (re.compile(r"(?<=\.uploading\.)\w{8}$"), "x"),  # artifacts of MLflow
    (re.compile(r"[0-9a-f]{32}"), "run"),  # runs of MLflow
)


def place_of(event: str, path: str, root: str) -> str | None:
    """Return what is written where, without the random parts of names; None if outside of root."""
    if not path.startswith(root + "/"):
        return None
    name = path[len(root) :]
    for pattern, text in _RANDOM:
        name = pattern.sub(text, name)
    return f"{CHANGES[event]} {name[1:]}"


def install() -> None:
    """Install the hook with the plan that the environment names."""
    os.environ.setdefault("CHAOS_DRIVER", str(os.getpid()))
    plan = json.loads(Path(os.environ["CHAOS_PLAN"]).read_text())
    sys.addaudithook(_Hook(plan))


class _Hook:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.is_full = False
        self.busy = threading.local()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or getattr(self.busy, "now", False):
            return
        path = arguments[0]
        if not isinstance(path, str) or event == "open" and not arguments[2] & WRITES:
            return
        self.busy.now = True
        try:
            if place := place_of(event, path, self.plan["root"]):
                self._at(place, path)
        finally:
            self.busy.now = False

    def _at(self, place: str, path: str) -> None:
        if trace := self.plan.get("trace"):
            _append(trace, place)
        for kill in self.plan.get("kills", []):
            if kill["place"] == place and _is_first(kill["done"]):
                if kill["delay"]:
                    thread = threading.Timer(kill["delay"], _kill, [kill["who"]])
                    thread.daemon = True
                    thread.start()
                else:
                    _kill(kill["who"])
        for hold in self.plan.get("holds", []):
            if hold["place"] == place and _is_first(hold["done"]):
                while True:
                    time.sleep(60)
        if faults := self.plan.get("faults"):
            self._fail(place, path, faults)

    def _fail(self, place: str, path: str, faults: str) -> None:
        """Let the write fail; a file that is too large fails in its middle, by the kernel."""
        number = self.plan["errno"]
        if not self.is_full:
            if not place.startswith("write ") or place in Path(faults).read_text().splitlines():
                return
            _append(faults, place)
            self.is_full = True
            if number == errno.EFBIG:
                resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        if number != errno.EFBIG and not place.startswith("remove "):
            raise OSError(number, os.strerror(number), path)


def _append(path: str, line: str) -> None:
    number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(number, f"{line}\n".encode())
    os.close(number)


def _is_first(path: str) -> bool:
    """Return whether this process is the first that comes here, and write its number if it is."""
    written = f"{path}.{os.getpid()}"
    Path(written).write_text(str(os.getpid()))
    try:
        os.link(written, path)  # with what it holds, so that nobody finds it empty
    except FileExistsError:
        return False
    finally:
        os.remove(written)
    return True


def _kill(who: str) -> None:
    """Send SIGKILL; the process itself comes last."""
    driver = int(os.environ["CHAOS_DRIVER"])
    victims = {
        "writer": [os.getpid()],
        "driver": [driver],
        "raylet": [pid for pid, name in below(driver).items() if name == "raylet"],
        "everyone": [driver, *below(driver)],
    }[who]
    for pid in sorted(victims, key=lambda pid: pid == os.getpid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if who != "raylet" and os.getpid() in victims:
        time.sleep(60)  # the signal is on its way


def below(pid: int) -> dict[int, str]:
    """Return the names of all processes that a process has started, at any depth."""
    parents, names = dict[int, int](), dict[int, str]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            text = path.read_text()
            one = int(path.parent.name)
            names[one] = text[text.index("(") + 1 : text.rindex(")")]
            parents[one] = int(text[text.rindex(")") + 2 :].split()[1])
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return {one: names[one] for one in found - {pid}}
