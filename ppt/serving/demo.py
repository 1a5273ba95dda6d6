"""The page of `ppt demo`, on which people try a trained stage: an ASGI application without Ray.

The page is made here and needs no script. Its address says which picture and which sentences it
shows, so the address repeats it. Uploaded pictures are kept in memory, the last ones of them.
"""

# FastAPI reads the annotations of functions when the application is made, so that they must be
# types and not texts: this module has no `from __future__ import annotations`.

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI, Form, Query, Request, Response, UploadFile
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from ppt.config import Labels
from ppt.images.drawing import NEGATIVE, POSITIVE, PREDICTION
from ppt.images.panels import (
    CANDIDATES,
    candidates_panel,
    data_uri,
    mask_panel,
    picture_panel,
    similarity_panel,
)
from ppt.images.pictures import UnreadablePicture, check_picture, read_picture
from ppt.serving.explanation import Explanation, explain
from ppt.serving.interface import Limits, limit_body
from ppt.serving.own_world import check_world
from ppt.serving.predictor import Predictor
from ppt.toybox import world

NUM_UPLOADS = 50
"""How many uploaded pictures are kept; the oldest one makes room for a new one."""

SIDE = 416
"""The long side of the drawings in pixels."""

_SEED = 17  # of the embedded world's scenes that are offered, which no curriculum uses


@dataclass(frozen=True)
class Example:
    """A picture to choose, with sentences that may be asked about it."""

    picture: Path | np.ndarray  # as for `read_picture`
    texts: Sequence[str] = ()


def embedded_world(number: int = 6) -> dict[str, Example]:
    """Return scenes of the embedded world by name, each with expressions about two objects."""
    scenes = (world.scene(_SEED, i) for i in itertools.count())
    chosen = (s for s in scenes if len({e.target for e in s.expressions}) > 1)
    return {
        f"scene-{i}": Example(scene.image, [e.text for e in scene.expressions])
        for i, scene in enumerate(itertools.islice(chosen, number))
    }


@dataclass
class Uploads:
    """The files of the last pictures that were uploaded, by their digests."""

    files: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, data: bytes, max_pixels: int) -> str:
        """Keep a picture, and return its name. Raises UnreadablePicture if it cannot be used."""
        check_picture(data, max_pixels)
        name = hashlib.sha256(data).hexdigest()[:16]
        with self.lock:
            self.files[name] = data
            while len(self.files) > NUM_UPLOADS:
                self.files.popitem(last=False)
        return name


def demo_app(
    predictor: Predictor,
    labels: Labels,
    examples: Mapping[str, Example],
    limits: Limits,
    title: str,
) -> FastAPI:
    """Return the application of the page.

    Args:
        predictor: the model.
        labels: how candidates are made.
        examples: the pictures that can be chosen, by name.
        limits: what is more is refused.
        title: what the page says of the model.
    """
    app = FastAPI(openapi_url=None)
    page = Environment(
        loader=PackageLoader("ppt.serving", "."), autoescape=True, undefined=StrictUndefined
    ).get_template("demo.html.jinja")
    uploads, one_at_a_time = Uploads(), threading.Lock()
    thumbnails = {
        name: data_uri(picture_panel(read_picture(example.picture), 120))
        for name, example in examples.items()
    }

    def shown(
        picture: str = "", texts: Sequence[str] = (), error: str = "", status: int = 200, **of: Any
    ) -> Response:
        """Return the page with what was asked and, in `of`, what was found."""
        content = page.render(
            {"image": None, "cards": [], **of},
            title=title,
            is_toybox=predictor.checkpoint.model.clip.name == "toybox",
            examples=examples,
            thumbnails=thumbnails,
            picture=picture,
            texts=texts,
            error=error,
            link=_link(picture, texts),
            link_of=_link,
            limits=limits,
            colours={"positive": POSITIVE, "negative": NEGATIVE, "mask": PREDICTION},
        )
        return HTMLResponse(content, status)

    def image_of(name: str) -> np.ndarray:
        """Return a picture by its name. Raises HTTPException if it is not here."""
        if name in examples:
            return read_picture(examples[name].picture)
        data = uploads.files.get(name)
        if data is None:
            raise HTTPException(404, f"the picture {name!r} is not here any more: upload it again")
        return check_picture(data)

    @app.get("/")
    def show(
        picture: str = "",
        text: Annotated[list[str], Query()] = [],  # noqa: B006 (FastAPI copies it)
    ) -> Response:
        """Show the page; with a picture and texts, what the model makes of them."""
        if not picture:
            return shown(texts=text)
        if len(text) > limits.max_texts:
            raise HTTPException(422, f"at most {limits.max_texts} sentences, got {len(text)}")
        try:
            image = image_of(picture)
            if not text:
                return shown(picture, image=data_uri(picture_panel(image, SIDE)))
            check_world(predictor.checkpoint, image)
            with one_at_a_time:
                found = explain(predictor, image, text, labels)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        cards = [_card(image, explanation) for explanation in found]
        return shown(picture, text, image=data_uri(picture_panel(image, SIDE)), cards=cards)

    @app.post("/", max_body_size=limits.max_bytes)
    def ask(
        texts: Annotated[str, Form()] = "",
        picture: Annotated[str, Form()] = "",
        upload: UploadFile | None = None,
    ) -> Response:
        """Keep an uploaded picture, and lead to the address that answers the form."""
        if upload is not None and (data := upload.file.read()):
            try:
                picture = uploads.add(data, limits.max_pixels)
            except UnreadablePicture as error:
                raise HTTPException(422, str(error)) from None
        lines = [line.strip() for line in texts.splitlines() if line.strip()]
        if not picture:
            raise HTTPException(422, "choose a picture or upload one")
        return RedirectResponse(_link(picture, lines), 303)

    too_large = f"a picture may have at most {limits.max_bytes:,} bytes"
    limit_body(app, limits.max_bytes, lambda: shown(error=too_large, status=413))

    @app.exception_handler(HTTPException)
    async def tell(_: Request, error: HTTPException) -> Response:
        told = {"Not Found": "there is no such page", "Content Too Large": too_large}
        return shown(error=told.get(error.detail, error.detail), status=error.status_code)

    return app


def _link(picture: str, texts: Sequence[str]) -> str:
    """Return the address that shows a picture and what the model finds in it for texts."""
    return "/?" + urlencode([("picture", picture), *(("text", text) for text in texts)])


def _card(image: np.ndarray, explanation: Explanation) -> dict[str, Any]:
    """Draw what is shown of one sentence."""
    prediction, candidates = explanation.prediction, explanation.candidates
    colours = [CANDIDATES[i % len(CANDIDATES)] for i in range(len(candidates))]
    points, labels = prediction.points, prediction.point_labels
    return {
        "text": prediction.text,
        "verdict": prediction.verdict,
        "sure": prediction.score >= 0.5,
        "words": explanation.words,
        "unread": prediction.unread,
        "mask": data_uri(
            mask_panel(image, prediction.mask, points=points, point_labels=labels, side=SIDE)
        ),
        "attention": data_uri(
            similarity_panel(image, prediction.attention / prediction.attention.max(), SIDE)
        ),
        "candidates_drawn": data_uri(
            candidates_panel(image, [c.mask for c in candidates], colours, SIDE)
        ),
        "candidates": list(zip(candidates, colours, strict=True)),
    }
