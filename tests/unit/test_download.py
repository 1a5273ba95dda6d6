"""`ppt download` and pictures by URL, tried against a server on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import open_clip
import pytest
from PIL import Image
from typer.testing import CliRunner

from ppt.config import load_curriculum
from ppt.downloads import published_files
from ppt.downloads.published_files import FILES, PublishedFile, published_file, published_weights
from ppt.downloads.web import DownloadError, download, read_url
from ppt.jobs.cli import app
from ppt.toybox import world

WEIGHTS = bytes(range(256)) * 8_000  # 2 MB


class Server(ThreadingHTTPServer):
    """Serves files from memory, and notes which ranges it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.knows_ranges = True
        self.breaks_after: list[int] = []  # for each answer in turn, after how many bytes it breaks
        self.asked: list[str | None] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        data = self.server.files.get(self.path.lstrip("/"))
        if data is None:
            return self.send_error(404)
        start = int(asked[len("bytes=") : -1]) if asked and self.server.knows_ranges else 0
        if start >= len(data) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end = start + self.server.breaks_after.pop(0) if self.server.breaks_after else None
        self.wfile.write(data[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def nobody() -> str:
    """An address at which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/w.pt"


Offer = Callable[..., PublishedFile]


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Puts a file on the server and into the list of downloads."""

    def offered(data: bytes = WEIGHTS, **changes: object) -> PublishedFile:
        server.files["w.pt"] = data
        sha256 = hashlib.sha256(data).hexdigest()
        entry = replace(FILES["sam_vit_b"], urls=(server.url("w.pt"),), sha256=sha256, **changes)
        monkeypatch.setitem(published_files.FILES, entry.name, entry)
        return entry

    return offered


def ppt_download(*arguments: object, answer: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["download", *map(str, arguments)], input=answer)
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_size_and_licence_are_told_before_anything_is_asked(server, offer, tmp_path):
    entry = offer()
    code, output = ppt_download("sam_vit_b", "--to", tmp_path, answer="n\n")
    assert code == 1 and not server.asked and not list(tmp_path.iterdir())
    for told in ("375 MB", entry.licence, entry.urls[0], entry.sha256, "publish none"):
        assert told in output
    code, output = ppt_download("sam_vit_b", "--to", tmp_path, answer="y\n")
    place = tmp_path / "weights" / "sam_vit_b_01ec64.pth"
    assert code == 0 and place.read_bytes() == WEIGHTS
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_what_is_there_is_not_downloaded_again(server, offer, tmp_path):
    offer()
    assert ppt_download("sam_vit_b", "--yes", "--to", tmp_path)[0] == 0
    code, output = ppt_download("sam_vit_b", "--yes", "--to", tmp_path)
    assert code == 0 and "is there already" in output and len(server.asked) == 1
    (tmp_path / "weights" / "sam_vit_b_01ec64.pth").write_bytes(b"other")
    code, output = ppt_download("sam_vit_b", "--yes", "--to", tmp_path)
    assert code == 2 and "is not the published file" in output and len(server.asked) == 1


def test_a_connection_that_breaks_is_resumed_at_once(server, offer, tmp_path):
    entry = offer()
    server.breaks_after = [1_500_000, 200_000]
    place = download(entry, tmp_path, lambda amount: None)
    assert place.read_bytes() == WEIGHTS
    first, *others = server.asked
    assert first is None and len(others) == 2
    assert all(int(asked[len("bytes=") : -1]) > 0 for asked in others)


def test_an_interrupted_download_goes_on_later(server, offer, tmp_path):
    entry = offer()
    part = entry.place(tmp_path).with_name(f"{entry.file}.part")
    part.parent.mkdir()
    part.write_bytes(WEIGHTS[:1_000_000])
    arrived = []
    assert download(entry, tmp_path, arrived.append).read_bytes() == WEIGHTS
    assert server.asked == ["bytes=1000000-"] and sum(arrived) == len(WEIGHTS) - 1_000_000
    assert not part.exists()


def test_a_server_without_ranges_sends_all_again(server, offer, tmp_path):
    entry = offer()
    server.knows_ranges = False
    part = entry.place(tmp_path).with_name(f"{entry.file}.part")
    part.parent.mkdir()
    part.write_bytes(b"x" * 1_000)
    assert download(entry, tmp_path, lambda amount: None).read_bytes() == WEIGHTS


def test_a_part_that_was_whole_is_only_verified(server, offer, tmp_path):
    entry = offer()
    part = entry.place(tmp_path).with_name(f"{entry.file}.part")
    part.parent.mkdir()
    part.write_bytes(WEIGHTS)
    assert download(entry, tmp_path, lambda amount: None).read_bytes() == WEIGHTS


@pytest.mark.parametrize("had", [b"", b"another beginning"])
def test_a_wrong_checksum_is_told_and_nothing_is_left(server, offer, tmp_path, had):
    entry = offer()
    server.files["w.pt"] = b"the page of a portal" if not had else WEIGHTS
    part = entry.place(tmp_path).with_name(f"{entry.file}.part")
    part.parent.mkdir()
    if had:
        part.write_bytes(had)
    code, output = ppt_download("sam_vit_b", "--yes", "--to", tmp_path)
    assert code == 2
    assert f"not {entry.sha256}" in output and "it is removed" in output
    assert not list(part.parent.iterdir())


def test_a_server_that_is_down(offer, tmp_path):
    offer()
    FILES["sam_vit_b"] = replace(FILES["sam_vit_b"], urls=(nobody(),))
    code, output = ppt_download("sam_vit_b", "--yes", "--to", tmp_path)
    assert code == 2 and "the server cannot be reached" in output


def test_a_server_that_goes_down_leaves_a_part_for_the_next_time(server, offer, tmp_path):
    entry = offer()
    server.breaks_after = [1_500_000, 0]
    with pytest.raises(DownloadError, match="the next call goes on with it"):
        download(entry, tmp_path, lambda amount: None)
    assert download(entry, tmp_path, lambda amount: None).read_bytes() == WEIGHTS
    assert server.asked[-1] not in (None, "bytes=0-")


def test_the_second_address_is_tried(server, offer, tmp_path):
    entry = offer()
    entry = replace(entry, urls=(nobody(), server.url("gone"), *entry.urls))
    assert download(entry, tmp_path, lambda amount: None).read_bytes() == WEIGHTS
    entry = replace(entry, name="other", file="other.pt", urls=entry.urls[:2])
    with pytest.raises(DownloadError, match=r"other: .*cannot be reached; .*gone.* answers 404"):
        download(entry, tmp_path, lambda amount: None)


def _archive(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in names:
            file.writestr(name, name)
    return stream.getvalue()


def test_an_archive_is_unpacked(offer, tmp_path):
    data = _archive("refcoco/instances.json", "refcoco/refs(unc).p", "__MACOSX/x", "../../out")
    entry = offer(data, unpacks="refcoco", folder="data/refer")
    assert ppt_download("sam_vit_b", "--yes", "--to", tmp_path)[0] == 0
    assert (tmp_path / "data/refer/refcoco/refs(unc).p").read_text() == "refcoco/refs(unc).p"
    assert [path.name for path in (tmp_path / "data/refer").iterdir()] == ["refcoco"]
    assert not (tmp_path / "out").exists()
    assert "is there already" in ppt_download(entry.name, "--yes", "--to", tmp_path)[1]


@pytest.mark.parametrize("data", [b"PK no archive", _archive("other/a")])
def test_an_archive_that_is_not_as_expected(offer, tmp_path, data):
    entry = offer(data, unpacks="refcoco", folder="data/refer")
    with pytest.raises(DownloadError, match=r"cannot be unpacked|has no folder refcoco"):
        download(entry, tmp_path, lambda amount: None)
    assert not (tmp_path / "data/refer/refcoco").exists()


def test_names_are_listed_and_near_ones_suggested():
    code, output = ppt_download()
    assert code == 0 and all(name in output for name in FILES)
    code, output = ppt_download("sam_vitb")
    assert code == 2 and "did you mean sam_vit_b?" in output


def test_clips_addresses_are_those_of_open_clip():
    for entry in FILES.values():
        if entry.name.startswith("clip_"):
            assert entry.urls == (open_clip.get_pretrained_cfg(entry.model, "openai")["url"],)


def test_things_go_where_the_papers_curricula_look_for_them():
    paper = load_curriculum("refcoco")
    for model in (paper.model.clip, paper.model.sam):
        entry = published_weights(model.name)
        assert str(entry.place(Path())) == model.weights
    for name in ("refcoco", "refcoco+", "refcocog"):
        assert published_file(name).place(Path()) == paper.data.referring.root / name
    coco = published_file("coco_train2014").place(Path())
    assert coco == paper.data.referring.root / "images" / "train2014"


# ---------------------------------------------------------------- what lies at an address


def test_a_file_is_read_up_to_a_limit(server):
    server.files["a"] = b"x" * 1_000
    assert read_url(server.url("a"), 1_000) == b"x" * 1_000
    with pytest.raises(DownloadError, match="has more than 999 bytes"):
        read_url(server.url("a"), 999)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("SERVER/gone", "the server answers 404"),
        ("NOBODY", "the server cannot be reached"),
        ("http://[::1", "it is no address of the web"),
        ("http://", "it is no address of the web"),
        ("file:///etc/hostname", "it is no address of the web"),
    ],
)
def test_an_address_that_gives_nothing(server, url, message):
    url = url.replace("SERVER/", server.url("")).replace("NOBODY", nobody())
    with pytest.raises(DownloadError, match=message):
        read_url(url, 1_000)


def test_masks_for_a_picture_on_the_web(server, tmp_path, monkeypatch):
    stream = io.BytesIO()
    Image.fromarray(world.scene(2, 0).image).save(stream, "PNG")
    server.files["a%20b.png"], server.files["page"] = stream.getvalue(), b"<html>"
    given = ["--clip", "toybox", "--sam", "toybox", "--out", str(tmp_path / "out")]

    def predict(name: str) -> tuple[int, str]:
        arguments = ["predict", server.url(name), "a car", *given]
        result = CliRunner().invoke(app, arguments)
        return result.exit_code, " ".join(result.output.split())

    assert predict("a%20b.png")[0] == 0
    told = json.loads((tmp_path / "out" / "a b-a-car.json").read_text())
    assert told["picture"] == server.url("a%20b.png")
    code, output = predict("page")
    assert code == 2 and "page: picture has no known picture format" in output
    code, output = predict("gone.png")
    assert code == 2 and "the server answers 404" in output
    monkeypatch.setattr("ppt.serving.asked.MAX_BYTES", 1_000)
    code, output = predict("a%20b.png")
    assert code == 2 and "has more than 1,000 bytes" in output


def test_a_download_that_breaks_is_told(server):
    server.files["a"], server.breaks_after = b"x" * 1_000, [10]
    with pytest.raises(DownloadError, match="connection broke"):
        read_url(server.url("a"), 1_000)
