"""The folder of a run, which holds the page, the summary and MLflow's files.

Users find it at STORE/NAME. MLflow's SQLite file and the page need a real folder, so with a store
behind a URL the run works in a local folder. It is filled from STORE/NAME when the run starts, and
copied back after every stage and at the end of the run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ppt.store.nodes import Store, digest_of


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, as a context manager around all that reads or writes in it.

    Entering the block fetches the folder's content from the store, and leaving it publishes the
    content.
    """

    store: Store
    name: str
    moved_to: str | None = None  # where the folder lies, if it does not lie in the store

    @property
    def path(self) -> str:
        """The local path of the folder."""
        if self.moved_to:
            return self.moved_to
        if self.store.is_local:
            return f"{self.store.path}/{self.name}"
        # The path never changes, because MLflow stores the full paths of its artifacts.
        return str(Path(tempfile.gettempdir(), "ppt-runs", digest_of(self.store.root), self.name))

    def __enter__(self) -> RunFolder:
        if not self.store.is_local and not self.moved_to:
            self._fetch()
        return self

    def fetched(self, file: str) -> bool:
        """Return whether the folder has a file, after fetching the folder from a URL."""
        if not self.store.is_local and not self.moved_to:
            self._fetch()
        return Path(self.path, file).is_file()

    def _fetch(self) -> None:
        """Make the local folder equal to STORE/NAME.

        A file with equal content is not written again, because another run of this process may have
        MLflow's database open.
        """
        fetched = set()
        for remote in self._remote_files():
            local = Path(self.path, remote.removeprefix(self._remote).lstrip("/"))
            content = self.store.fs.cat_file(remote)
            if not local.is_file() or local.read_bytes() != content:
                local.parent.mkdir(parents=True, exist_ok=True)
                local.write_bytes(content)
            fetched.add(local)
        for local in [path for path in Path(self.path).rglob("*") if path.is_file()]:
            if local not in fetched:
                local.unlink()

    def __exit__(self, *_: object) -> None:
        self.publish()

    def publish(self) -> None:
        """Copy the local folder into the store. With a local store nothing is copied."""
        if self.store.is_local or self.moved_to:
            return
        fs = self.store.fs
        for local in sorted(path for path in Path(self.path).rglob("*") if path.is_file()):
            remote = f"{self._remote}/{local.relative_to(self.path).as_posix()}"
            fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
            fs.put_file(str(local), remote)

    @property
    def _remote(self) -> str:
        return f"{self.store.path}/{self.name}"

    def _remote_files(self) -> list[str]:
        fs = self.store.fs
        fs.invalidate_cache(self._remote)
        return list(fs.find(self._remote)) if fs.exists(self._remote) else []
