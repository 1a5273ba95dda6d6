"""Files from the web: large ones, whose download goes on where it ended, and single pictures."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import requests

from ppt.downloads.published_files import PublishedFile

_CHUNK = 2**16
_TIMEOUT = (10, 60)  # seconds to connect, and between two bytes


class DownloadError(Exception):
    """A file that could not be downloaded, or that is not what it should be."""


def read_url(url: str, max_bytes: int) -> bytes:
    """Return what lies at an http or https address.

    Raises:
        DownloadError: if the server cannot be reached, refuses, or sends more than `max_bytes`.
    """
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as answer:
            _check_status(answer)
            data = bytearray()
            for chunk in answer.iter_content(_CHUNK):
                data += chunk
                if len(data) > max_bytes:
                    raise DownloadError(f"{url} has more than {max_bytes:,} bytes")
            return bytes(data)
    except (requests.RequestException, UnicodeError) as error:
        raise DownloadError(f"{url}: {_reason(error)}") from error


def download(entry: PublishedFile, root: Path, advance: Callable[[int], None]) -> Path:
    """Download a published file to its place below `root`, verify it, and unpack an archive.

    What has arrived lies in a file that ends in `.part`, with which the next call goes on. Each
    address is tried, and is asked for the rest as long as something arrives.

    Args:
        entry: what to download.
        root: the folder that holds the folders of weights and data.
        advance: called with the numbers of bytes that arrive or are there already.

    Returns:
        The path of the file, or of the folder that was in the archive.

    Raises:
        DownloadError: if no address gives the file, if its checksum is another one, or if an
            archive is not as expected.
    """
    place = entry.place(root)
    part = place.with_name(f"{entry.file}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    faults = []
    for url in entry.urls:
        try:
            _receive(url, part, advance)
            break
        except (requests.RequestException, UnicodeError) as error:
            faults.append(f"{url}: {_reason(error)}")
    else:
        kept = f"; {part} is kept, and the next call goes on with it" if part.exists() else ""
        raise DownloadError(f"{entry.name}: {'; '.join(faults)}{kept}")
    found = sha256_of(part)
    if found != entry.sha256:
        part.unlink()
        raise DownloadError(
            f"{entry.name}: what was downloaded has the SHA-256 {found}, not {entry.sha256}: it "
            "was damaged on its way, or is no longer the published file; it is removed"
        )
    if entry.unpacks is None:
        part.replace(place)
    else:
        _unpack(entry, part, place)
    return place


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _receive(url: str, part: Path, advance: Callable[[int], None]) -> None:
    """Receive a file, and ask for the rest each time the connection breaks after some bytes."""
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            return _receive_rest(url, part, advance)
        except requests.RequestException:
            if not part.exists() or part.stat().st_size <= had:
                raise


def _receive_rest(url: str, part: Path, advance: Callable[[int], None]) -> None:
    had = part.stat().st_size if part.exists() else 0
    asked = {"Accept-Encoding": "identity", **({"Range": f"bytes={had}-"} if had else {})}
    with requests.get(url, headers=asked, stream=True, timeout=_TIMEOUT) as answer:
        if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is left, or the part is not of this file, which its checksum tells
        _check_status(answer)
        goes_on = answer.status_code == HTTPStatus.PARTIAL_CONTENT
        with part.open("ab" if goes_on else "wb") as file:
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                advance(len(chunk))


def _check_status(answer: requests.Response) -> None:
    if not answer.ok:
        reason = answer.reason or "no reason is given"
        raise requests.HTTPError(f"the server answers {answer.status_code} ({reason})")


def _reason(error: Exception) -> str:
    """Return in a few words why an address gave nothing; requests tells whole chains of causes."""
    if isinstance(error, requests.HTTPError):
        return str(error)
    if isinstance(error, requests.Timeout):
        return "the server does not answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke"
    if isinstance(error, requests.TooManyRedirects):
        return "it redirects again and again"
    return "it is no address of the web"


def _unpack(entry: PublishedFile, archive: Path, place: Path) -> None:
    """Unpack the folder of an archive, and remove the archive; `place` appears when it is whole."""
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}-") as scratch:
        try:
            with zipfile.ZipFile(archive) as file:
                file.extractall(scratch)
        except zipfile.BadZipFile as error:
            raise DownloadError(f"{entry.name}: {archive} cannot be unpacked: {error}") from error
        unpacked = Path(scratch) / place.name
        if not unpacked.is_dir():
            raise DownloadError(f"{entry.name}: {archive} has no folder {place.name}")
        shutil.move(unpacked, place)
    archive.unlink()
