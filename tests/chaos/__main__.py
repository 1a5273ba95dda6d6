"""Kill runs, take their disk away and damage their files; then let them go on, and compare.

PYTHONPATH=tests python -m chaos                     # 20 kills, a failing write for every file
PYTHONPATH=tests python -m chaos --seed 7 --kills 40
PYTHONPATH=tests python -m chaos --short             # without Ray, in seconds

A tiny curriculum of the embedded world is run without being disturbed. Then, in other stores:

1. it is killed with SIGKILL at places drawn from all of its writes, in this process and on Ray, and
   run again until it has ended;
2. two runs begin at once, both in processes of their own, on Rays of their own, or one on Ray;
3. every file that it writes fails once, with a full or read-only disk, a damaged one or a limit on
   the size of files, and it is run again after each;
4. a bit is flipped in files of every kind, of a finished store and of an unfinished training, and
   it is run again.

What is complete must at any time be that of the undisturbed run, byte for byte, and so must all
checkpoints and results at the end. The last lines are a table; the exit code is 1 if anything
differs.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.pop("MLFLOW_TRACKING_URI", None)

from common import TINY, two_stages
from rich.console import Console
from rich.table import Table

from chaos.attempts import (
    Attempt,
    Wait,
    contents,
    differences,
    in_fork,
    in_process,
    leftovers,
    logged_twice,
)
from ppt.steps.uses import USES
from ppt.store.checksums import DamagedFile
from ppt.store.nodes import Node, Store
from ppt.tracking.mlflow_runs import ARTIFACTS
from ppt.training.stage import EPOCHS

ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EFBIG)
LESS = ("num_buckets=1", "stages.ris_joint.num_epochs=2")
"""Overrides for a run with fewer files."""

KILLS_IN_A_STORE = 5
VICTIMS = ("writer", "writer", "driver", "raylet", "everyone")
"""Who is killed on Ray; the writer is an actor, a worker of a training or the driver."""

LONGEST_DELAY = 0.5
"""The longest time in seconds from the place of a kill to the kill."""

NAME = "chaos"
"""The name of the run, which is that of its folder."""

console = Console(width=160)


@dataclass
class Row:
    """A line of the table: one kind of harm, how often it was done and how often all was well."""

    what: str
    tried: int = 0
    held: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, faults: list[str]) -> None:
        """Count one trial, and print how it ended."""
        self.tried += 1
        self.held += not faults
        self.faults += [f"{name}: {fault}" for fault in faults]
        console.print(f"  {'FAULT' if faults else 'held '} {self.what}: {name}", highlight=False)
        for fault in faults:
            console.print(f"        {fault}", markup=False, highlight=False, soft_wrap=True)


class Chaos:
    """The folder of all stores, and the undisturbed run with which they are compared."""

    def __init__(self, home: Path, *overrides: str) -> None:
        self.home = home
        self.rng = random.Random()
        self.overrides = overrides
        home.mkdir(exist_ok=True)
        self.curriculum = two_stages(home)
        self.expected = dict[str, object]()
        self.number = 0

    def new_store(self) -> Path:
        """Return the folder of a new store, with a folder for temporary files beside it."""
        self.number += 1
        folder = self.home / str(self.number)
        (folder / "tmp").mkdir(parents=True)
        return folder / "runs"

    def start(self, store: Path, plan: dict, *command: str, on_ray: bool = False) -> Wait:
        """Start a command, by default `ppt train`, in a store."""
        temporary = store.parent / "tmp"
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None
        if not command:
            options = [*TINY, f"name={NAME}", f"store={store}", *self.overrides]
            local = [] if on_ray else ["--local"]
            command = ("train", str(self.curriculum), *options, *local)
        how = in_process if on_ray else in_fork
        return how(list(command), {"root": str(store.parent), **plan}, store.parent)

    def run(self, store: Path, plan: dict, *command: str, on_ray: bool = False) -> Attempt:
        """Run a command, by default `ppt train`, in a store."""
        for _ in range(3):
            end = self.start(store, plan, *command, on_ray=on_ray)()
            if "Ray did not start" not in end.output:  # this machine is too busy for it
                break
        return end

    def undisturbed(self, *, on_ray: bool = False) -> tuple[Path, list[str]]:
        """Run the curriculum to its end. Returns its store and the places of its writes."""
        store, started = self.new_store(), time.monotonic()
        trace = store.parent / "trace"
        end = self.run(store, {"trace": str(trace)}, on_ray=on_ray)
        if fault := end.fault([0]):
            sys.exit(
                f"the undisturbed run {'on Ray' if on_ray else ''} failed: {fault}\n{end.output}"
            )
        places = list(dict.fromkeys(trace.read_text().splitlines()))
        if self.expected and (told := differences(store, self.expected, finished=True)):
            sys.exit("the undisturbed runs differ: " + "; ".join(told))
        self.expected = contents(store)
        seconds = time.monotonic() - started
        print(
            f"undisturbed{' on Ray' * on_ray}: {len(places)} writes in {seconds:.0f} s", flush=True
        )
        ours = ("runs/", "tmp/tmp/")
        return store, [place for place in places if place.split()[1].startswith(ours)]


# ---------------------------------------------------------------- kills


def kill(chaos: Chaos, places: list[str], number: int, *, on_ray: bool = False) -> Row:
    """Kill runs `number` times, a few times in each store."""
    row = Row(f"SIGKILL {'on Ray' if on_ray else 'with --local'}")
    while row.tried < number:
        todo = min(KILLS_IN_A_STORE, number - row.tried)
        chosen = sorted(_drawn(chaos.rng, places, todo), key=places.index)
        store = chaos.new_store()
        kills = [
            {
                "place": place,
                "who": chaos.rng.choice(VICTIMS) if on_ray else "writer",
                "delay": chaos.rng.choice([0, round(chaos.rng.uniform(0, LONGEST_DELAY), 3)]),
                "done": str(store.parent / f"done-{i}"),
            }
            for i, place in enumerate(chosen)
        ]
        faults = defaultdict[int, list[str]](list)
        for _ in range(todo + 2):
            before = _done(kills)
            end = chaos.run(store, {"kills": kills}, on_ray=on_ray)
            fired = [i for i in _done(kills) if i not in before]
            told = differences(store, chaos.expected, finished=end.code == 0)
            if end.hung or not fired:  # nobody was killed: it must end well
                told += [fault] if (fault := end.fault([0])) else []
            if end.code == 0:
                told += [f"{name} is left" for name in leftovers(store)]
            faults[(fired or before or [0])[-1]] += told
            if end.code == 0:
                break
        else:
            faults[todo - 1].append("it did not come to its end")
        for i, one in enumerate(kills):
            if not Path(one["done"]).exists():
                faults[i].append("its place was not reached")
            after = f" after {one['delay']} s" if one["delay"] else ""
            row.add(f"{one['who']} at {one['place']}{after}", faults[i])
        shutil.rmtree(store.parent)
    return row


def _done(kills: list[dict]) -> list[int]:
    return [i for i, one in enumerate(kills) if Path(one["done"]).exists()]


def _kind(place: str) -> str:
    """Return the kind of a place: what is done to which kind of file of which kind of node."""
    what, path = place.split(" ", 1)
    parts = path.split("/")
    if parts[1] == "locks":
        return f"{what} lock"
    folder = parts[2] if parts[1] == "store" and len(parts) > 2 else parts[1]
    return f"{what} {folder} {parts[-1].lstrip('.').rpartition('-')[0] or parts[-1]}"


def _drawn(rng: random.Random, places: list[str], number: int) -> list[str]:
    """Draw different places, each of another kind as long as there are enough."""
    kinds = defaultdict[str, list[str]](list)
    for place in places:
        kinds[_kind(place)].append(place)
    drawn = [rng.choice(kinds[kind]) for kind in rng.sample(sorted(kinds), min(number, len(kinds)))]
    others = [place for place in places if place not in drawn]
    return drawn + rng.sample(others, max(0, number - len(drawn)))


# ---------------------------------------------------------------- two runs


def pair(chaos: Chaos, *, on_ray: bool = False) -> Row:
    """Start two runs at once on one store: with --local or on Rays of their own."""
    row = Row("two runs at once")
    for first, second in [(True, True), (True, False)] if on_ray else [(False, False)]:
        store = chaos.new_store()
        waits = [chaos.start(store, {}, on_ray=one) for one in (first, second)]
        ends = [wait() for wait in waits]
        told = [fault for end in ends if (fault := end.fault([0]))]
        told += differences(store, chaos.expected, finished=True)
        told += leftovers(store) + logged_twice(store)
        names = [("--local", "Ray")[one] for one in (first, second)]
        waited = sum(end.output.count("another run is making this, waiting") for end in ends)
        row.add(f"{' and '.join(names)}, which waited {waited} times", told)
        shutil.rmtree(store.parent)
    return row


# ---------------------------------------------------------------- disks


def fail(chaos: Chaos, seed: int) -> Row:
    """Let every write of a run fail once, and run it again after each."""
    chaos.rng, row = random.Random(seed), Row("a failing write")
    _, places = chaos.undisturbed()
    store = chaos.new_store()
    faults = store.parent / "faults"
    faults.touch()
    for _ in range(2 * len(places)):
        number = chaos.rng.choice(ERRORS)
        before = faults.read_text().splitlines()
        end = chaos.run(store, {"faults": str(faults), "errno": number})
        failed = faults.read_text().splitlines()[len(before) :]
        told = differences(store, chaos.expected, finished=end.code == 0 and not failed)
        if fault := end.fault([0, 2]):
            told.append(fault)
        told += [f"{name} is left" for name in leftovers(store)]
        if not failed:
            if end.code:
                told.append(f"exit code {end.code} without a fault")
            row.add("run to the end", told)
            break
        row.add(f"{errno.errorcode[number]} at {failed[0]}", told)
    else:
        row.add("run to the end", ["it did not come to its end"])
    shutil.rmtree(store.parent)
    return row


# ---------------------------------------------------------------- damage


def flip(chaos: Chaos, whole: Path, places: list[str], number: int) -> Row:
    """Flip a bit in `number` files, about as many of each kind, and use the store with each.

    The files are those of a finished store and its run, and those of an unfinished training.
    """
    row = Row("a flipped bit")
    kinds = defaultdict[tuple[str, ...], list[tuple[Path, Path]]](list)
    for store in (whole, _interrupted(chaos, places)):
        for path in sorted(store.rglob("*")):
            name = path.relative_to(store)
            is_training = name.parts[:2] == ("store", EPOCHS)
            if path.is_file() and (is_training or store == whole and ARTIFACTS not in name.parts):
                kinds[_kind_of_file(name)].append((store, name))
    shuffled = [chaos.rng.sample(files, len(files)) for files in kinds.values()]
    turns = [file for turn in zip_longest(*shuffled) for file in turn if file]
    print(f"{len(turns)} files of {len(kinds)} kinds", flush=True)
    for base, name in turns[:number]:
        store = chaos.new_store()
        shutil.copytree(base, store)
        place, bit = _flip(store / name, chaos.rng)
        row.add(f"bit {bit} of byte {place} of {name}", _after_a_flip(chaos, store, name))
        shutil.rmtree(store.parent)
    return row


def _interrupted(chaos: Chaos, places: list[str]) -> Path:
    """Kill a run after the second epoch of a training. Returns its store."""
    store = chaos.new_store()
    place = next(p for p in places if p.startswith("write ") and "/.epoch-0002-" in p)
    kills = [{"place": place, "who": "writer", "delay": 0, "done": str(store.parent / "done")}]
    chaos.run(store, {"kills": kills})
    assert list(store.glob(f"store/{EPOCHS}/*/manifest.json")), "it was not killed there"
    return store


def _kind_of_file(name: Path) -> tuple[str, ...]:
    """Return the kind of a file, such as the receipts of labels, or the summary of a run."""
    parts = name.parts
    folder = parts[1] if parts[0] == "store" else parts[0]
    held = "" if folder == USES else name.stem.partition("-")[0]
    return (*parts[:-1], held) if folder == NAME else (folder, held)


def _after_a_flip(chaos: Chaos, store: Path, name: Path) -> list[str]:
    """Run `ppt verify` and the curriculum in a store with a damaged file. Returns what is wrong."""
    path, told = store / name, []
    damaged = path.read_bytes()
    if name.parts[0] == "store":
        verified = chaos.run(store, {}, "verify", str(store))
        if fault := verified.fault([0, 1]):
            told.append(fault)
        is_same = path.suffix == ".json" and verified.code == 0  # a digit that changes nothing
        if not is_same and (verified.code != 1 or str(name) not in verified.output):
            told.append("ppt verify does not tell it")
    end = chaos.run(store, {})
    if fault := end.fault([0, 2]):
        told.append(fault)
    if end.code == 2 and str(name) not in end.output:
        told.append(f"the line does not name the file: {end.errors}")
    changed = differences(store, chaos.expected, finished=end.code == 0)
    is_left = name.parts[0] == "store" and path.is_file() and path.read_bytes() == damaged
    if is_left:  # the run ended with it, or did not read it
        if end.code == 0 and f"{name} differs" in changed:
            told += _silent_reader(store, name)
        changed = [line for line in changed if line != f"{name} differs"]
    return told + changed


def _silent_reader(store: Path, name: Path) -> list[str]:
    """Return a line if a later reader of a damaged file would not be told."""
    kind, digest = name.parts[1:3]
    table, _, bucket = name.stem.partition("-")
    node = Node(Store(str(store)), kind, digest, {})
    try:
        if kind == "checkpoints":
            node.local_folder()
        if name.suffix == ".json":
            node.read_json(name.name)
        elif kind != "checkpoints":
            node.read(int(bucket), table)
    except DamagedFile as damage:
        return [] if str(name) in str(damage) else [f"the reader is told: {damage}"]
    return ["a reader is not told"]


def _flip(path: Path, rng: random.Random) -> tuple[int, int]:
    content = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return place, bit


# ---------------------------------------------------------------- the whole


def main() -> int:
    """Do all that the arguments ask for, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m chaos", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kills", type=int, default=20, help="half of them on Ray")
    parser.add_argument("--flips", type=int, default=100, help="spread over all kinds of files")
    parser.add_argument("--only", choices=["kills", "pairs", "writes", "flips", "ray"])
    parser.add_argument("--short", action="store_true", help="a few, without Ray")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    _import_all()
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    os.environ["CHAOS_HOME"] = str(home)
    started = time.monotonic()
    chaos, rows = Chaos(home, *(LESS if asked.short else ())), list[Row]()
    try:
        whole, places = chaos.undisturbed()
        here, there = asked.kills // 2, asked.kills - asked.kills // 2
        parts: dict[str, Callable[[], list[Row]]] = {
            "kills": lambda: [kill(chaos, places, here)],
            "pairs": lambda: [pair(chaos)],
            "writes": lambda: [fail(Chaos(home / "writes", *LESS), asked.seed)],
            "flips": lambda: [flip(chaos, whole, places, asked.flips)],
            "ray": lambda: [
                kill(chaos, chaos.undisturbed(on_ray=True)[1], there, on_ray=True),
                pair(chaos, on_ray=True),
            ],
        }
        if asked.short:
            parts = {"kills": lambda: [kill(chaos, places, 2)], "pairs": parts["pairs"]}
        for name, part in parts.items():
            if asked.only in (None, name):
                chaos.rng = random.Random(f"{asked.seed} {name}")
                rows += part()
    finally:
        shutil.rmtree(home, ignore_errors=True)
    table = Table("what was done", "tried", "held", title=f"seed {asked.seed}")
    for row in rows:
        table.add_row(row.what, str(row.tried), str(row.held))
    console.print(table)
    for row in rows:
        for fault in row.faults:
            console.print(f"FAULT {row.what}: {fault}", markup=False, highlight=False)
    print(f"{time.monotonic() - started:.0f} s; again with --seed {asked.seed}", flush=True)
    return int(any(row.faults for row in rows))


def _import_all() -> None:
    """Import what a local run needs, for the forks of this process."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import ppt.curriculum.run
    import ppt.jobs.cli
    import ppt.steps.local_runner
    import ppt.tracking.summary  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
