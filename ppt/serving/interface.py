"""The JSON interface of a trained stage over HTTP, as an ASGI application that needs no Ray.

`POST /v1/segment` takes a picture and texts and answers with a mask for each text, `GET /health`
tells that the model is loaded, and `GET /openapi.json` describes both. What cannot be answered gets
a status of 4xx and `{"error": "..."}`, one line that says what is wrong.
"""

# FastAPI reads the annotations of functions when the application is made, so that they must be
# types and not texts: this module has no `from __future__ import annotations`.

import base64
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import ppt
from ppt.config.messages import one_line, place_of
from ppt.images.pictures import UnreadablePicture, check_picture
from ppt.serving.own_world import check_world
from ppt.serving.predictor import PicturePrediction, Question, checked_texts
from ppt.serving.stored_checkpoint import StoredCheckpoint

Segment = Callable[[Question], Awaitable[list[PicturePrediction]]]
"""Answers one question; several may be asked at the same time."""


class Limits(BaseModel):
    """What a request may ask for at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(16_000_000, gt=0)  # of a request's body, in which base64 adds a third
    max_pixels: int = Field(25_000_000, gt=0)  # of the picture
    max_texts: int = Field(16, gt=0)


class Mask(BaseModel):
    """A mask in COCO's compressed run lengths, which `pycocotools.mask.decode` reads."""

    size: tuple[int, int] = Field(description="[height, width] in pixels")
    counts: str


class Segmented(BaseModel):
    """The mask of one text, with all coordinates in pixels of the upright picture."""

    expression: str
    unread: list[str] = Field(
        description="The words of the expression that the model does not know, or cuts off."
    )
    score: float = Field(description="The probability that the mask is right, 0 to 1.")
    points: list[tuple[float, float]] = Field(description="The points of the prompt as (x, y).")
    point_labels: list[int] = Field(description="For each point 1 (positive) or 0 (negative).")
    box: tuple[int, int, int, int] = Field(
        description="The tight box [x, y, width, height] of the mask, all 0 if it is empty."
    )
    height: int
    width: int
    mask: Mask
    checkpoint: str = Field(description="The digest of the checkpoint.")


class SegmentResponse(BaseModel):
    """The masks, in the order of the texts."""

    predictions: list[Segmented]


class Error(BaseModel):
    """Why a request cannot be answered, in one line."""

    error: str


class Health(BaseModel):
    """Says that the model is loaded."""

    status: str = "ok"
    checkpoint: str = Field(description="The digest of the checkpoint.")


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The body is no JSON."},
    413: {"model": Error, "description": "The body has too many bytes."},
    415: {"model": Error, "description": "The body's type is not application/json."},
    422: {"model": Error, "description": "A field, the picture or a text cannot be used."},
}


def segmentation_app(segment: Segment, checkpoint: StoredCheckpoint, limits: Limits) -> FastAPI:
    """Return the application that answers requests with `segment`.

    Args:
        segment: predicts the masks of the texts of a picture; both have been checked.
        checkpoint: that with which `segment` predicts.
        limits: what is more is refused.
    """
    app = FastAPI(
        title="ppt: masks for sentences",
        version=ppt.__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )

    class SegmentRequest(BaseModel):
        """A picture and the texts whose referents are asked for."""

        model_config = ConfigDict(extra="forbid", strict=True)

        picture: str = Field(
            description="A picture file (JPEG, PNG, ...) in base64, of at most "
            f"{limits.max_pixels:,} pixels.",
            json_schema_extra={"contentEncoding": "base64"},
        )
        texts: Annotated[list[str], Field(min_length=1, max_length=limits.max_texts)]

    @app.post("/v1/segment", responses=REFUSALS, max_body_size=limits.max_bytes)
    async def segment_picture(request: SegmentRequest) -> SegmentResponse:
        """Segment what each text refers to."""
        try:
            texts = checked_texts(request.texts)
        except ValueError as error:
            raise HTTPException(422, f"texts: {error}") from None
        image = await run_in_threadpool(_decoded, request.picture, checkpoint, limits)
        found = await segment(Question(image, texts))
        return SegmentResponse(
            predictions=[Segmented(**prediction.as_dict()) for prediction in found]
        )

    @app.get("/health")
    async def health() -> Health:
        """Tell that the model is loaded."""
        return Health(checkpoint=checkpoint.digest)

    paths = "ask for POST /v1/segment, GET /health or GET /openapi.json"
    told = {
        400: "the body is no JSON",
        404: f"there is no such path: {paths}",
        405: f"this path has another method: {paths}",
        413: f"the body may have at most {limits.max_bytes:,} bytes",
    }

    limit_body(app, limits.max_bytes, lambda: _refusal(413, told[413]))

    @app.exception_handler(HTTPException)
    async def tell(_: Request, error: HTTPException) -> Response:
        text = told.get(error.status_code, error.detail)
        return _refusal(error.status_code, text, error.headers)

    @app.exception_handler(RequestValidationError)
    async def tell_fields(request: Request, error: RequestValidationError) -> Response:
        return _refusal(*_told(request, error))

    return app


def limit_body(app: FastAPI, max_bytes: int, refuse: Callable[[], Response]) -> None:
    """Let an application refuse bodies that say that they have more bytes.

    A path's `max_body_size` counts the bytes of the others, and what is sent in spite of its word.
    """

    @app.middleware("http")
    async def check(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "")
        is_large = length.isdecimal() and int(length) > max_bytes
        return refuse() if is_large else await handle(request)


def _refusal(status: int, text: str, headers: Any = None) -> JSONResponse:
    return JSONResponse(Error(error=one_line(text)).model_dump(), status, headers)


def _told(request: Request, error: RequestValidationError) -> tuple[int, str]:
    """Return the status and the message for a body that is not as the schema says."""
    first = error.errors()[0]
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if first["loc"] == ("body",) and first["type"] == "missing":
        return 400, 'the body is empty: send {"picture": "...", "texts": ["..."]}'
    if kind != "application/json" and not kind.endswith("+json"):
        return 415, f"the content type is {kind!r}: send application/json"
    if first["type"] == "json_invalid":
        return 400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][1]}"
    lines = [
        f"{place_of(e['loc'][1:]) or 'the body'}: {e['msg'][0].lower()}{e['msg'][1:]}"
        for e in error.errors()[:5]
    ]
    return 422, "; ".join(lines)


def _decoded(picture: str, checkpoint: StoredCheckpoint, limits: Limits) -> np.ndarray:
    """Decode a picture file in base64. Raises HTTPException if it cannot be used."""
    try:
        image = check_picture(base64.b64decode(picture, validate=True), limits.max_pixels)
        check_world(checkpoint, image)
        return image
    except UnreadablePicture as error:
        told = str(error)
    except ValueError as error:
        told = f"picture is no base64: {error}"
    raise HTTPException(422, told)
