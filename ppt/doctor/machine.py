"""The machine and its services: disk, memory, processors, Ray, MLflow, libraries."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import torch

import ppt
from ppt.config import ConfigError, Curriculum, Resources
from ppt.distributed.cluster import (
    actors_request,
    ask_cluster,
    check_answer,
    cpus_here,
    names_cluster,
    nodes_without,
    training_request,
)
from ppt.doctor.check import Check, State
from ppt.doctor.cost import Cost
from ppt.steps.local_runner import check_training
from ppt.store.disk import unwritable
from ppt.store.nodes import Store
from ppt.tracking.mlflow_runs import check_tracking

GB = 1e9
_PORTS = {"http": 80, "https": 443}
_OTHER = "set store to another one"
_ANSWER_WITHIN = 2.0  # seconds
_LIBRARIES = (
    "ray",
    "torch",
    "torchvision",
    "open_clip_torch",
    "segment-anything",
    "mlflow",
    "numpy",
    "pyarrow",
)


# ---------------------------------------------------------------- disk and memory


def check_disk(root: str, cost: Cost | None, *, local: bool = False) -> Check:
    """Check the free disk of the store against what the run writes there.

    Unless the run is `local`, all nodes of a cluster must see the store.
    """
    name, store = "disk (store)", Store(root)
    needs = f"needs about {_gb(cost.total)}: {_parts(cost)}" if cost else ""
    if not store.is_local:
        found = f"{root} is remote, its space is not known; {needs}".rstrip("; ")
        todo = "every machine keeps a copy of what it reads under TMPDIR: see that it fits there"
        if fault := unwritable(store.fs, store.path):
            return Check(name, "missing", f"{root} cannot be written to: {fault}", _OTHER)
        return Check(name, "warning", found, todo)
    place = Path(store.path)
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return Check(name, "missing", f"{place} cannot be written to", _OTHER)
    if not local and names_cluster() and (without := nodes_without(str(place))):
        found = f"{place} is not shared: {', '.join(without)} of the cluster see none of it"
        return Check(name, "missing", found, "set store to a folder that all see, or to a URL")
    free = shutil.disk_usage(place).free
    found = f"{_gb(free)} free in {store.path}"
    if cost is None:
        return Check(name, "ok", found)
    found = f"{found}; {needs}"
    if cost.total <= free:
        return Check(name, "ok", found)
    stored = sum(f.stat().st_size for f in Path(store.path, "store").glob("features/*/*.arrow"))
    if stored and cost.total <= free + stored:
        todo = f"enough if the {_gb(stored)} of features that are there already are this run's"
        return Check(name, "warning", found, todo)
    return Check(name, "missing", found, "set store to a folder (or an fsspec URL) with more room")


def _parts(cost: Cost) -> str:
    return (
        f"features {_gb(cost.features)} ({cost.pictures:,} pictures x {cost.bytes_per_picture:,} "
        f"B), words {_gb(cost.words)} ({cost.texts:,} texts x {cost.bytes_per_text:,} B), targets "
        f"{_gb(cost.targets)} ({cost.candidates:,} candidates x {cost.bytes_per_candidate:,} B), "
        f"pictures {_gb(cost.sample_bytes)}"
    )


def check_memory(needed: int | None) -> Check:
    """Check the memory of this machine, or of its container, against the `needed` bytes."""
    name, total = "memory", _memory()
    if needed is None:
        return Check(name, "ok", f"{_gb(total)}")
    found = f"{_gb(total)}; the driver and the actors take about {_gb(needed)} to encode on CPUs"
    if needed > total:
        return Check(name, "warning", found, "lower resources.num_actors")
    return Check(name, "ok", found)


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


# ---------------------------------------------------------------- processors


def check_processors(resources: Resources | None) -> Check:
    """Check the CPUs and GPUs of this machine against what the run asks for at a time.

    If RAY_ADDRESS names a cluster, it is asked instead. The CPUs are those that Ray counts, which
    respects the limit of a container but not the affinity of this process.
    """
    name = "CPUs and GPUs"
    if names_cluster():
        return _check_cluster(name, resources)
    cpus = cpus_here()
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    told = ", ".join(f"{gpu.name} ({_gb(gpu.total_memory)})" for gpu in gpus) or "no GPU"
    found = f"{cpus} CPUs, {told}"
    if resources is None:
        return Check(name, "ok", found)
    asked = [
        actors_request(resources, resources.fewest_actors),
        training_request(resources, resources.fewest_workers),
    ]
    most = {kind: max(request[kind] for request in asked) for kind in ("CPU", "GPU")}
    found += f"; asked for: {most['CPU']:g} CPU, {most['GPU']:g} GPU"
    if most["GPU"] > len(gpus):
        todo = "set resources.gpus_per_worker and resources.gpus_per_actor to 0 to run on CPUs"
        return Check(name, "missing", found, f"{todo}, or name a cluster by RAY_ADDRESS")
    if most["CPU"] > cpus + 1e-6:
        return Check(name, "missing", found, "lower resources.num_* or resources.cpus_per_*")
    if gpus and most["GPU"] == 0:
        todo = "set resources.gpus_per_worker and resources.gpus_per_actor to use the GPU"
        return Check(name, "warning", found, todo)
    return Check(name, "ok", found)


def check_one_process(resources: Resources | None) -> Check:
    """Check that a run can train in one process."""
    name, found = "CPUs and GPUs", f"{cpus_here()} CPUs for one process, without Ray"
    try:
        if resources is not None:
            check_training(resources)
    except ConfigError as error:
        return Check(name, "wrong", found, str(error))
    return Check(name, "ok", found)


def _check_cluster(name: str, resources: Resources | None) -> Check:
    """Ask the cluster what it has, and whether the run fits on its nodes."""
    try:
        there, fault = ask_cluster(resources)
    except ConfigError as error:
        return Check(name, "missing", str(error), "see the check of Ray")
    found = f"the cluster has {there.cpus:g} CPUs and {there.gpus:g} GPUs on {there.nodes} nodes"
    if fault:
        return Check(name, "missing", found, fault)
    return Check(name, "ok", found + ("; the run fits" if resources else ""))


# ---------------------------------------------------------------- services


def check_ray() -> Check:
    """Tell where Ray runs. A cluster that is named by its address is only asked for an answer."""
    name, address = "Ray", os.environ.get("RAY_ADDRESS", "")
    if not names_cluster():
        return Check(name, "ok", "on this machine (RAY_ADDRESS names no cluster)")
    try:
        check_answer()
    except ConfigError as error:
        return Check(name, "missing", str(error))
    if address == "auto":
        return Check(name, "ok", "the cluster that this machine belongs to (RAY_ADDRESS=auto)")
    return Check(name, "ok", f"RAY_ADDRESS={address} answers")


def check_mlflow(folder: str | None) -> Check:
    """Tell where MLflow records runs, and check any other address as `ppt train` does."""
    name, uri = "MLflow", os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        place = f"sqlite:///{folder}/mlflow.db" if folder else "mlflow.db in each run's folder"
        return Check(name, "ok", f"{place} (MLFLOW_TRACKING_URI is not set)")
    if uri.startswith(("http://", "https://")) and (fault := _fault_of(uri)):
        found = f"MLFLOW_TRACKING_URI={uri} does not answer: {fault}"
        todo = "start the server, or unset MLFLOW_TRACKING_URI to write into the run's folder"
        return Check(name, "missing", found, todo)
    try:
        check_tracking(folder or "runs")
    except ConfigError as error:
        return Check(name, "wrong", str(error))
    return Check(name, "ok", f"{uri} takes runs")


def _fault_of(uri: str) -> str | None:
    """Return why the server at an address accepts no connection, or None if it does."""
    try:
        parts = urlsplit(uri)
        port = parts.port or _PORTS[parts.scheme]
        if not parts.hostname:
            return "no host in it"
        with socket.create_connection((parts.hostname, port), timeout=_ANSWER_WITHIN):
            return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error)


# ---------------------------------------------------------------- libraries


def check_libraries() -> Check:
    """Check the installed versions against the tested ones, which constraints.txt pins."""
    name, tested = "libraries", _tested()
    installed = {library: _installed(library) for library in _LIBRARIES}
    told = ", ".join(f"{lib} {number or 'missing'}" for lib, number in installed.items())
    found = f"Python {platform.python_version()}, ppt {ppt.__version__}, {told}"
    state: State = "ok"
    todo = ""
    if absent := [library for library, number in installed.items() if number is None]:
        state, todo = "missing", f"pip install {' '.join(absent)}"
    elif not tested:
        state, todo = "warning", "no constraints.txt in ppt/: they were compared with nothing"
    elif other := [f"{lib} {tested[lib]}" for lib, n in installed.items() if tested[lib] != n]:
        state, todo = "warning", f"tested with {', '.join(other)}: see constraints.txt"
    return Check(name, state, found, todo)


def _installed(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _tested() -> dict[str, str]:
    """Return the pinned version of each library; empty if the file is missing."""
    pins = Path(ppt.__file__).parent / "constraints.txt"
    if not pins.is_file():
        return {}
    pairs = re.findall(r"^([\w.-]+)==(\S+)$", pins.read_text(), re.MULTILINE)
    numbers = {library.lower().replace("_", "-"): number for library, number in pairs}
    return {library: numbers.get(library.replace("_", "-"), "") for library in _LIBRARIES}


def folder_of(curriculum: Curriculum) -> str:
    """Return the folder of a run."""
    return f"{Store(curriculum.store).path}/{curriculum.name}"


def _gb(number: float) -> str:
    return f"{number / GB:,.1f} GB" if number >= GB / 10 else f"{number / 1e6:,.1f} MB"
