"""The page of `ppt demo`: what it shows, its links, uploads, mistakes, and a browser's view."""

from __future__ import annotations

import html
import io
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner
from untrained_run import untrained_run

from ppt.config import ConfigError, Labels
from ppt.images.masks import iou
from ppt.jobs.cli import app as command_line
from ppt.jobs.demo import pictures_of
from ppt.labels.noun_phrases import noun_phrases
from ppt.serving.explanation import explain
from ppt.serving.predictor import Predictor
from ppt.toybox import world

pytest.importorskip("fastapi", reason="needs the extra demo")
pytest.importorskip("multipart", reason="needs the extra demo")

from fastapi.testclient import TestClient

from ppt.serving.demo import NUM_UPLOADS, demo_app, embedded_world
from ppt.serving.interface import Limits

TEXTS = ["the red car left of the dog", "xyzzy on the left"]
LIMITS = Limits(max_bytes=60_000, max_pixels=96 * 96, max_texts=3)
SCENE = world.scene(1, 0).image


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.from_checkpoint(untrained_run(tmp_path_factory.mktemp("demo") / "runs"))


@pytest.fixture(scope="module")
def app(predictor: Predictor) -> Any:
    return demo_app(predictor, Labels(), embedded_world(2), LIMITS, "quickstart")


@pytest.fixture(scope="module")
def client(app: Any) -> TestClient:
    return TestClient(app)


def ask(client: TestClient, **fields: Any) -> Any:
    """Send the form, and return the answer to it, which leads to the page."""
    files = {"upload": ("a.png", fields.pop("upload"))} if "upload" in fields else {}
    return client.post("/", data=fields, files=files, follow_redirects=False)


def test_what_explains_a_prediction(predictor: Predictor) -> None:
    """The prediction is `predict`'s own; each noun phrase has candidates; words are told apart."""
    found = explain(predictor, SCENE, TEXTS, Labels(max_instances=2))
    for text, explanation in zip(TEXTS, found, strict=True):
        alone = predictor.predict(SCENE, text)
        assert explanation.prediction.text == text
        assert iou(explanation.prediction.mask, alone.mask) > 0.99
        assert {c.phrase for c in explanation.candidates} <= set(noun_phrases(text))
        assert all(c.mask.shape == SCENE.shape[:2] for c in explanation.candidates)
    assert [word for word, read in found[0].words if read] == TEXTS[0].split()
    assert found[1].words == [("xyzzy", False), ("on", True), ("the", True), ("left", True)]
    assert {c.phrase for c in found[0].candidates} == {"red car", "dog"}


def test_the_page_offers_pictures_with_sentences(client: TestClient) -> None:
    page = client.get("/").text
    for name, example in embedded_world(2).items():
        assert f'value="{name}"' in page
        assert all(f">{text}</a>" in page for text in example.texts)
    assert "embedded world" in page and "://" not in page


def test_the_form_leads_to_an_address_that_repeats_the_answer(client: TestClient) -> None:
    answer = ask(client, picture="scene-1", texts="the red car\n\n  dog & bus \n")
    assert answer.status_code == 303
    link = answer.headers["location"]
    assert parse_qs(urlsplit(link).query) == {
        "picture": ["scene-1"],
        "text": ["the red car", "dog & bus"],
    }
    page = client.get(link).text
    assert html.escape(link) in page
    assert re.findall(r"<h2>“(.*?)”</h2>", page) == ["the red car", "dog &amp; bus"]
    assert page.count('alt="mask and points"') == page.count('alt="attention"') == 2
    assert page.count("score 0.") + page.count("score 1.") == 2
    assert re.sub('data:image[^"]*', "", client.get(link).text) == re.sub(
        'data:image[^"]*', "", page
    )


def test_words_that_are_not_understood_are_told(client: TestClient) -> None:
    page = client.get("/", params={"picture": "scene-0", "text": TEXTS}).text
    assert '<span class="unread">xyzzy</span>' in page and "Not understood: xyzzy." in page
    assert page.count("Not understood") == 1


def test_a_picture_of_another_world_gets_no_mask(client: TestClient) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    answer = client.get(ask(client, upload=png(noise), texts="dog").headers["location"])
    assert answer.status_code == 422 and "none of the embedded world" in answer.text


def test_an_upload_is_shown_under_its_own_address(client: TestClient) -> None:
    link = ask(client, upload=png(SCENE[:64]), texts="dog").headers["location"]
    assert client.get(link).status_code == 200
    name = parse_qs(urlsplit(link).query)["picture"][0]
    again = ask(client, picture=name, texts="car").headers["location"]  # as the page sends it
    assert parse_qs(urlsplit(again).query) == {"picture": [name], "text": ["car"]}
    assert client.get(again).status_code == 200
    for shade in range(NUM_UPLOADS):
        ask(client, upload=png(np.full((16, 16, 3), shade, np.uint8)))
    gone = client.get(link)
    assert gone.status_code == 404 and "is not here any more: upload it again" in gone.text


@pytest.mark.parametrize(
    ("fields", "status", "message"),
    [
        ({"texts": "dog"}, 422, "choose a picture or upload one"),
        ({"upload": b"dog"}, 422, "picture has no known picture format"),
        ({"upload": png(np.zeros((96, 97, 3), np.uint8))}, 422, "may have at most 9,216 pixels"),
        ({"upload": b"a" * 60_000}, 413, "a picture may have at most 60,000 bytes"),
    ],
)
def test_a_mistake_in_the_form_is_told_on_the_page(client, fields, status, message) -> None:
    answer = ask(client, **fields)
    assert answer.status_code == status
    assert message in html.unescape(answer.text) and "<form" in answer.text


@pytest.mark.parametrize(
    ("address", "status", "message"),
    [
        ("/?picture=scene-9", 404, "the picture 'scene-9' is not here any more"),
        ("/?picture=scene-0&text=%20", 422, "expression ' ' has no word"),
        ("/?picture=scene-0" + "&text=dog" * 4, 422, "at most 3 sentences, got 4"),
        ("/?picture=<script>alert(1)</script>", 404, "the picture '<script>"),
        ("/demo", 404, "there is no such page"),
    ],
)
def test_a_wrong_address_is_told_on_the_page(client, address, status, message) -> None:
    answer = client.get(address)
    assert answer.status_code == status
    assert message in html.unescape(answer.text) and "<script>" not in answer.text


# ---------------------------------------------------------------- the command


def refused(*arguments: str) -> str:
    """Run `ppt demo`, which must end with exit code 2, and return what it says."""
    result = CliRunner().invoke(command_line, ["demo", "--checkpoint", "runs/none", *arguments])
    assert result.exit_code == 2
    return " ".join(result.output.split())


def test_a_package_of_the_extra_that_is_missing_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "uvicorn is not installed: pip install 'ppt-ris[demo]'" in refused()


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen on 127.0.0.1:{port}" in refused("--port", str(port))


def test_the_pictures_of_a_folder_are_offered(tmp_path) -> None:
    with pytest.raises(ConfigError, match="has no picture that can be read"):
        pictures_of(tmp_path)
    (tmp_path / "b.png").write_bytes(png(SCENE))
    (tmp_path / "a.txt").write_text("no picture")
    assert list(pictures_of(tmp_path)) == ["b.png"]
    with pytest.raises(ConfigError, match="is no folder"):
        pictures_of(tmp_path / "b.png")


# ---------------------------------------------------------------- in a browser


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on a free port of this machine, and yield its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_cut_off_in_a_browser(app: Any, width: int, browser: Any) -> None:
    with served(app) as address:
        long = "the%20" * 30 + "dog&text=" + "x" * 90
        seen = browser.look_at(f"{address}/?picture=scene-0&text={long}", width)
    assert seen.told == [] and seen.cut_off == []
    assert "Not understood: " + "x" * 90 in seen.text
    assert Image.open(io.BytesIO(seen.picture)).width == width
