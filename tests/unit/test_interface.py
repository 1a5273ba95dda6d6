"""The JSON interface of `ppt serve` as a plain ASGI application: answers, limits, bad requests."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from untrained_run import untrained_run

from ppt.serving.predictor import PicturePrediction, Predictor, Question
from ppt.toybox import world

pytest.importorskip("fastapi", reason="needs the extra serve")

from fastapi.testclient import TestClient

from ppt.serving.interface import Limits, segmentation_app

LIMITS = Limits(max_bytes=60_000, max_pixels=96 * 96, max_texts=3)
JSON = {"content-type": "application/json"}


def png(image: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


SCENE = world.scene(1, 0).image[:64]
PICTURE = png(SCENE)
NOISE = png(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
WIDE = png(np.zeros((96, 97, 3), np.uint8))


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.from_checkpoint(untrained_run(tmp_path_factory.mktemp("interface") / "runs"))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    async def segment(question: Question) -> list[PicturePrediction]:
        return (await asyncio.to_thread(predictor.predict_pictures, [question]))[0]

    with TestClient(segmentation_app(segment, predictor.checkpoint, LIMITS)) as client:
        yield client


def test_the_answer_is_that_of_the_predictor(client: TestClient, predictor: Predictor) -> None:
    texts = ["the red car", "dog"]
    answer = client.post("/v1/segment", json={"picture": PICTURE, "texts": texts})
    assert answer.status_code == 200
    wanted = predictor.predict(SCENE, texts)
    for found, prediction in zip(answer.json()["predictions"], wanted, strict=True):
        told = prediction.as_dict()
        assert found.pop("score") == pytest.approx(told.pop("score"), abs=1e-5)
        assert found == json.loads(json.dumps({k: told[k] for k in found}))
        assert (coco.decode(found["mask"]).astype(bool) == prediction.mask).all()


def test_the_answer_tells_the_words_that_are_not_known(client: TestClient) -> None:
    texts = ["the red car", "a frobnicator near the xyzzy", "xyzzy frobnicator"]
    answer = client.post("/v1/segment", json={"picture": PICTURE, "texts": texts})
    found = answer.json()["predictions"]
    assert [row["unread"] for row in found] == [[], ["frobnicator", "xyzzy"], texts[2].split()]
    assert found[2]["score"] == 0 < min(found[0]["score"], found[1]["score"])


def test_health_and_schema(client: TestClient, predictor: Predictor) -> None:
    digest = predictor.checkpoint.digest
    assert client.get("/health").json() == {"status": "ok", "checkpoint": digest}
    schema = client.get("/openapi.json").json()
    segment = schema["paths"]["/v1/segment"]["post"]
    assert set(segment["responses"]) == {"200", "400", "413", "415", "422"}
    request = schema["components"]["schemas"]["SegmentRequest"]
    assert set(request["required"]) == {"picture", "texts"}
    assert request["properties"]["texts"]["maxItems"] == LIMITS.max_texts


def asked(**changes: Any) -> dict[str, Any]:
    return {"json": {"picture": PICTURE, "texts": ["dog"], **changes}}


BAD = {
    "an empty body": ({}, 400, "the body is empty"),
    "no JSON": ({"content": b"dog", "headers": JSON}, 400, "the body is no JSON: Expecting"),
    "JSON that is cut": ({"content": b'{"picture": ', "headers": JSON}, 400, "no JSON"),
    "bytes that are no text": ({"content": b"\xff\xfe\x00", "headers": JSON}, 400, "no JSON"),
    "JSON that is very deep": ({"content": b"[" * 50_000, "headers": JSON}, 400, "no JSON"),
    "a form": ({"data": {"picture": "a"}}, 415, "application/x-www-form-urlencoded"),
    "a file": ({"files": {"picture": b"a"}}, 415, "multipart/form-data"),
    "no content type": ({"content": b"{}"}, 415, "send application/json"),
    "a list": ({"json": []}, 422, "the body: input should be"),
    "null": ({"content": b"null", "headers": JSON}, 422, "the body: input should be"),
    "no field": ({"json": {}}, 422, "picture: field required; texts: field required"),
    "no picture": ({"json": {"texts": ["dog"]}}, 422, "picture: field required"),
    "no texts": ({"json": {"picture": PICTURE}}, 422, "texts: field required"),
    "an unknown field": (asked(text="dog"), 422, "text: extra inputs are not permitted"),
    "a picture that is a number": (asked(picture=3), 422, "picture: input should be a"),
    "a picture that is no base64": (asked(picture="dog!"), 422, "picture is no base64"),
    "a picture not in ASCII": (asked(picture="é"), 422, "picture is no base64"),
    "a picture without a byte": (asked(picture=""), 422, "picture is an empty file"),
    "a file that is no picture": (asked(picture="ZG9n"), 422, "no known picture format"),
    "a picture that is cut": (asked(picture=PICTURE[:800]), 422, "cannot be decoded"),
    "a picture of many pixels": (asked(picture=WIDE), 422, "97x96, may have at most 9,216 pix"),
    "a picture that is tiny": (asked(picture=png(SCENE[:4])), 422, "needs at least 8x8"),
    "a picture of another world": (asked(picture=NOISE), 422, "none of the embedded world"),
    "one text in place of a list": (asked(texts="dog"), 422, "texts: input should be a"),
    "an empty list": (asked(texts=[]), 422, "texts: list should have at least 1 item"),
    "too many texts": (asked(texts=["dog"] * 4), 422, "texts: list should have at most 3 items"),
    "a text that is a number": (asked(texts=["dog", 3]), 422, "texts.1: input should be a"),
    "a blank text": (asked(texts=["  "]), 422, "texts: expression '  ' has no word"),
    "a text of marks": (asked(texts=["dog", "?!"]), 422, "texts: expression '?!' has no word"),
    "a very long text": (asked(texts=["dog " * 5_000]), 422, "20,000 characters, more than"),
    "half a character": (
        {"content": json.dumps(asked(texts=["\ud800"])["json"]).encode(), "headers": JSON},
        422,
        "no valid Unicode",
    ),
    "many bytes": ({"content": b" " * 60_001, "headers": JSON}, 413, "at most 60,000 bytes"),
    "many bytes of unstated number": (
        {"content": (b" " * 10_000 for _ in range(9)), "headers": JSON},
        413,
        "at most 60,000 bytes",
    ),
    "another method": ({"method": "GET"}, 405, "this path has another method"),
    "a method that deletes": ({"method": "DELETE"}, 405, "this path has another method"),
    "another path": ({"url": "/v1/segments"}, 404, "there is no such path"),
    "a path with a slash more": ({"url": "/v1/segment/"}, 404, "there is no such path"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_told(client: TestClient, kind: str) -> None:
    request, status, message = BAD[kind]
    answer = client.request(**{"method": "POST", "url": "/v1/segment", **request})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert message in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert client.get("/health").status_code == 200  # the service is as before


def test_a_body_that_is_as_large_as_it_may_be(client: TestClient) -> None:
    content = json.dumps(asked()["json"]).encode()
    padded = content + b" " * (LIMITS.max_bytes - len(content))
    assert client.post("/v1/segment", content=padded, headers=JSON).status_code == 200
