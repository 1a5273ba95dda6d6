"""What no run of a store needs, and its removal.

A run has noted in the store what it uses (`ppt.steps.uses`), or has a folder STORE/NAME with a
summary. It needs what it names or has noted, and all that this was made from. This also holds for a
run whose folder was moved away, as long as it is not forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppt.config import ConfigError
from ppt.config.curriculum import RUN_NAMES_IN_USE
from ppt.config.messages import near
from ppt.doctor.lineage import kinds_of
from ppt.steps.uses import runs_noted, uses_of
from ppt.store.checksums import unseal
from ppt.store.nodes import Node, Store
from ppt.training.stage import EPOCHS

_SUMMARY = "summary.json"


@dataclass(frozen=True)
class Unneeded:
    """What was found in a store."""

    runs: list[str]  # the names of the runs that have their folder in the store
    elsewhere: list[str]  # those of the other runs: not trained yet, moved away or removed
    needed: list[tuple[Node, int]]  # with the number of their bytes
    unneeded: list[tuple[Node, int]]  # complete nodes, each before those that it was made from
    unfinished: list[tuple[Node, int]]  # nodes without a manifest, which are left alone


def find_unneeded(store: Store, forgotten: Sequence[str] = ()) -> Unneeded:
    """Compare what is in a store with what its runs need. Nothing is changed.

    Args:
        store: the store.
        forgotten: runs whose folder is gone, and which need nothing any more.

    Raises:
        ConfigError: if it cannot be known what is needed: the store has no run, or a summary or a
            manifest is damaged; or if a run that is to be forgotten has its folder here or is not
            known.
    """
    kinds = kinds_of(store)
    folders, noted = _folders(store), runs_noted(store)
    used = {name: uses for name in {*folders, *noted} if (uses := _used_by(store, name))}
    gone = sorted(used.keys() - folders)
    for name in forgotten:
        if name in folders:
            raise ConfigError(f"--forget: remove {store.path}/{name}, the run's folder, first")
        if name not in used:
            there = sorted(used.keys() & folders)
            raise ConfigError(
                f"--forget: there is no run {name!r}: the runs without a folder, which can be "
                f"forgotten, are {', '.join(gone) or 'none'}, and those with a folder are "
                f"{', '.join(there) or 'none'}{near(name, gone)}"
            )
        del used[name]
    if not used and not forgotten:
        raise ConfigError(
            f"no run in {store.root!r} says what it needs: give the `store` of a curriculum"
        )
    wanted = {digest for uses in used.values() for digest in uses}
    nodes = store.complete_nodes()  # raises DamagedFile, which says what to do
    parents = {node.digest: set(node.made_from["parents"].values()) for node in nodes}
    unfinished = wanted - parents.keys()  # of a training its last epoch is needed
    epochs = [node for node in nodes if node.kind == EPOCHS]
    wanted |= {node.digest for node in epochs if parents[node.digest] & unfinished}
    while more := {p for digest in wanted for p in parents.get(digest, ())} - wanted:
        wanted |= more
    others = [
        Node(store, kind, digest, {}) for digest, kind in kinds.items() if digest not in parents
    ]
    rest = {node.digest: node for node in nodes if node.digest not in wanted}
    return Unneeded(
        runs=sorted(used.keys() & folders),
        elsewhere=sorted(used.keys() - folders),
        needed=[_sized(node) for node in nodes if node.digest in wanted],
        unneeded=[_sized(rest[digest]) for digest in _children_first(rest, parents)],
        unfinished=[_sized(node) for node in others],
    )


def _folders(store: Store) -> set[str]:
    """Return the names of the folders beside the store's own."""
    names = {path.rsplit("/", 1)[-1] for path in store.fs.ls(store.path, detail=False)}
    others = names.difference(RUN_NAMES_IN_USE)
    return {name for name in others if store.fs.isdir(f"{store.path}/{name}")}


def _used_by(store: Store, name: str) -> set[str]:
    """Return the digests that a run names in its summary or has noted; none if it is no run."""
    noted = set(uses_of(store, name))
    path = f"{store.path}/{name}/{_SUMMARY}"
    if not store.fs.exists(path):
        return noted
    try:
        digests = unseal(store.fs.cat_file(path)).get("digests", {})
        return noted | {str(digest) for digest in digests.values()}
    except (ValueError, AttributeError) as error:
        told = "is damaged" if isinstance(error, AttributeError) else error
        raise ConfigError(
            f"{path} {told}. What the run {name!r} needs is not known: write it again with "
            "`ppt report`, or remove the run's folder"
        ) from None


def _children_first(rest: dict[str, Node], parents: dict[str, set[str]]) -> list[str]:
    """Order nodes so that each comes before those that it was made from."""
    ordered: list[str] = []
    remaining = sorted(rest, key=lambda digest: (rest[digest].kind, digest))
    while remaining:
        below = {parent for digest in remaining for parent in parents[digest]}
        ordered += (ready := [digest for digest in remaining if digest not in below] or remaining)
        remaining = [digest for digest in remaining if digest not in ready]
    return ordered


def _sized(node: Node) -> tuple[Node, int]:
    return node, sum(node.sizes().values())
