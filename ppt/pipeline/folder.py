"""The folder of a run: the page, the summary and MLflow's files, STORE/NAME for whoever looks.

MLflow's SQLite file and the page need a real folder. With a store behind a URL the run works in a
local one, filled from STORE/NAME when it starts and copied there after every stage and at its end.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ppt.store import Store, digest_of


@dataclass(frozen=True)
class RunFolder:
    """`path` is always local; used as `with folder:` around all that reads or writes in it."""

    store: Store
    name: str

    @property
    def path(self) -> str:
        if self.store.is_local:
            return f"{self.store.path}/{self.name}"
        # Always the same: MLflow remembers where its artifacts lie by the whole path.
        return str(Path(tempfile.gettempdir(), "ppt-runs", digest_of(self.store.root), self.name))

    def __enter__(self) -> RunFolder:
        if not self.store.is_local:
            self._fetch()
        return self

    def _fetch(self) -> None:
        """Make the local folder what STORE/NAME is.

        What is the same already stays the same file: MLflow may have its database open, from
        another run of this process.
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
        """Copy the folder into the store; nothing to do on a local one."""
        if self.store.is_local:
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
        return fs.find(self._remote) if fs.exists(self._remote) else []
