"""What a command is asked for: pictures by path, folder, pattern or URL, and then texts."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image

from ppt.config import ConfigError
from ppt.config.messages import shown
from ppt.downloads.web import DownloadError, read_url
from ppt.images.pictures import (
    FORMATS,
    MAX_BYTES,
    UnreadablePicture,
    check_picture,
    num_bytes,
    printable,
    read_picture,
)

_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class AskedPicture:
    """A picture that is read when its turn comes."""

    place: str  # a path, or a URL

    @property
    def name(self) -> str:
        """The place as a text that can be stored."""
        return printable(self.place)

    @property
    def file_name(self) -> str:
        """The name of its file, without folders."""
        if not _is_url(self.place):
            return Path(self.place).name
        return PurePosixPath(unquote(urlsplit(self.place).path)).name or "picture"

    @property
    def file(self) -> str:
        """The URL, or the absolute path, which is the same however the place is written."""
        return self.place if _is_url(self.place) else os.path.abspath(self.place)

    def read(self) -> np.ndarray:
        """Return its pixels, uint8 [H, W, 3] RGB; raises UnreadablePicture."""
        if not _is_url(self.place):
            return read_picture(self.place)
        try:
            return check_picture(read_url(self.place, MAX_BYTES))
        except DownloadError as error:
            raise UnreadablePicture(str(error)) from None
        except UnreadablePicture as error:
            raise UnreadablePicture(f"{self.place}: {error}") from None


def split_arguments(arguments: list[str]) -> tuple[list[AskedPicture], list[str]]:
    """Split the arguments of a command into pictures and texts.

    The first argument names pictures, and the last one is a text. What stands between names
    pictures as long as it is a URL or is there: a file, a folder, or a pattern with matches.

    Returns:
        The pictures, each once, and the texts.

    Raises:
        ConfigError: if there is no text, if a picture is not there, if a text names a picture, or
            if the texts are the words of a sentence without quotes.
    """
    if len(arguments) < 2:
        raise ConfigError('give pictures and a text (PICTURE... "TEXT"), or --table CSV')
    number = 1
    while number < len(arguments) - 1 and _is_there(arguments[number]):
        number += 1
    texts = arguments[number:]
    for text in texts:
        if _is_url(text) or (" " not in text and _is_picture_name(text)):
            if _is_there(text):
                raise ConfigError(
                    f"text: {shown(text)} names a picture: give pictures before texts"
                )
            raise _no_file(text)
    if len({*texts}) > 1 and all(text.split() == [text] for text in texts):
        command = shlex.join([*arguments[:number], " ".join(texts)])
        raise ConfigError(
            f"text: {len(texts)} texts of one word each: a sentence is one text in quotes, as in "
            f"`ppt predict {command}`; several objects are written with an article each, as in "
            "'a dog' 'a cat'"
        )
    found: dict[str, AskedPicture] = {}
    for argument in arguments[:number]:
        for picture in _pictures(argument):
            found.setdefault(picture.file, picture)
    return list(found.values()), texts


def _is_url(argument: str) -> bool:
    return _URL.match(argument) is not None


def _is_there(argument: str) -> bool:
    return _is_url(argument) or _exists(argument) or bool(_matches(argument))


def _exists(argument: str) -> bool:
    return num_bytes(Path(argument)) is not None or _is_folder(argument)


def _is_folder(argument: str) -> bool:
    try:
        return Path(argument).is_dir()
    except (OSError, ValueError):
        return False


def _matches(argument: str) -> list[str]:
    """Return the files that a pattern matches, in alphabetical order."""
    if not glob.has_magic(argument) or "\0" in argument:
        return []
    return sorted(path for path in glob.glob(argument, recursive=True) if Path(path).is_file())


def _pictures(argument: str) -> Iterator[AskedPicture]:
    """Yield the pictures that an argument names. Raises ConfigError if there is none."""
    if _is_url(argument):
        yield AskedPicture(argument)
    elif _is_folder(argument):
        inside = sorted(path for path in Path(argument).iterdir() if _is_picture_name(path.name))
        if not inside:
            told = f"no picture in the folder {shown(argument)}"
            raise ConfigError(f"picture: {told}{_below(argument)}")
        yield from (AskedPicture(str(path)) for path in inside)
    elif _exists(argument):
        yield AskedPicture(argument)
    elif glob.has_magic(argument):
        if not (paths := _matches(argument)):
            raise ConfigError(f"picture: no file matches {shown(argument)}")
        yield from (AskedPicture(path) for path in paths)
    else:
        raise _no_file(argument)


def _below(folder: str) -> str:
    """Return the end of a message about a folder without a picture: the pattern for those below."""
    inside = Path(glob.escape(folder), "**")
    paths = glob.iglob(str(inside / "*"), recursive=True)
    if (first := next(filter(_is_picture_name, paths), None)) is None:
        return ""
    pattern = inside / f"*{Path(first).suffix}"
    return f", but in its subfolders: give {shlex.quote(str(pattern))}"


def _no_file(argument: str) -> ConfigError:
    told = "no such file, or no regular one"
    return ConfigError(f"picture: cannot read {shown(argument)}: {told}")


def _is_picture_name(name: str) -> bool:
    """Return whether a name ends as those of pictures do."""
    Image.init()
    return Image.EXTENSION.get(Path(name).suffix.lower()) in FORMATS
