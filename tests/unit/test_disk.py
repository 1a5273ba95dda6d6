"""Disks that take no more: one line that says what to do, and nothing half written."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import typer

from ppt.config import ConfigError
from ppt.jobs.common import command
from ppt.store.disk import check_writable, disk_fault, replacing
from ppt.store.nodes import BucketOutput, Store

FULL = Path("/dev/full")
"""A device of Linux that answers every write as a full disk does."""


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel refuses files of more than 2,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_does_not_fit_leaves_nothing(small_files: None, tmp_path: Path) -> None:
    node = Store(str(tmp_path)).node("samples", {}, buckets=1)
    node.write_bytes("whole", b"1" * 2000)
    with pytest.raises(OSError) as caught:
        node.write_bytes("large", b"1" * 2001)
    assert [path.name for path in Path(node.folder).iterdir()] == ["whole"]
    told = str(disk_fault(caught.value))
    assert told.startswith(f"{node.path('large')}: File too large: raise the limit")
    assert told.endswith("then run the command again; what is complete is kept")
    table = pa.table({"column": [os.urandom(3000)]})
    with pytest.raises(OSError):
        node.write_bucket(0, BucketOutput({"data": table}))
    assert node.missing_buckets() == [0]
    assert node.write_bytes("whole", b"2" * 1000)["size"] == 1000
    assert Path(node.path("whole")).read_bytes() == b"2" * 1000


def test_the_former_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("before")
    with pytest.raises(OSError) as caught, replacing(path) as temporary:
        temporary.write_text("half")
        FULL.write_bytes(b"1")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    assert str(disk_fault(caught.value)).startswith(f"{path}: No space left on device: free some")


def test_a_file_on_a_disk_that_takes_nothing_is_named_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a disk also refuses to remove the temporary file, which is not there."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError) as caught, replacing(tmp_path / "file") as temporary:
        temporary.open("wb")
    assert str(disk_fault(caught.value)).startswith(f"{tmp_path}/file: Read-only file system: ")


def test_a_folder_that_cannot_be_written_to_is_told_with_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("/nowhere/x")
    (tmp_path / "file").touch()
    for folder, reason in (
        (tmp_path / "link", "a file or a broken link is there"),
        (tmp_path / "file", "a file or a broken link is there"),
        (tmp_path / "file" / "x", "Not a directory"),
        (Path("/proc/x"), "No such file or directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_writable(folder, "--out")
        told = f"--out: '{folder}' cannot be written to ({reason}): give another folder"
        assert str(caught.value) == told
    check_writable(tmp_path / "a" / "b", "--out")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    monkeypatch.chdir(tmp_path)
    for name in ("~", "file:x", "memory:y"):  # these are names of folders here
        check_writable(name, "--out")
        assert list((tmp_path / name).iterdir()) == []


@pytest.mark.parametrize("error", [FileNotFoundError(errno.ENOENT, "no"), OSError("no"), None])
def test_other_errors_are_none_of_a_disk(error: OSError | None) -> None:
    assert disk_fault(error or ValueError("no")) is None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_a_command_ends_in_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main() -> None:
        raise OSError(number, os.strerror(number), "/store/file")

    with pytest.raises(typer.Exit) as end:
        main()
    assert end.value.exit_code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: /store/file: {os.strerror(number)}: ")


def test_other_errors_of_a_command_are_not_hidden() -> None:
    @command
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "no such file", "x")

    with pytest.raises(FileNotFoundError):
        main()
