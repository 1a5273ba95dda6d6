"""The noun phrases of referring expressions, and the templates of synthesised expressions.

In Section 3.3 every noun phrase of an expression becomes a candidate. The rules of this module find
the phrases without a parser, in the brief style of RefCOCO. A text is cut into pieces at
prepositions, verbs, conjunctions and articles. A phrase is what remains of a piece without its
articles, position words ("left", "second") and places ("corner", "background").

Three rules are our choice. "person in red" remains one phrase, because a colour alone is not an
object. "glass of red wine" remains one phrase as well. "the white one" takes the noun of the first
phrase ("white horse").
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

CHUNKERS = {"rules": "rules-2", "spacy": "spacy-1/en_core_web_sm"}
"""The chunkers with their versions; the version is part of the digest of the labels."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ARTICLES = _words(
    "a an the this that these those his her its their my your our another other each every some "
    "any all both"
)
_PRONOUNS = _words(
    "he she it they him them me us we i you who whom himself herself itself themselves someone "
    "somebody anyone ones there here what"
)
_POSITIONS = _words(
    "left right top bottom middle center centre central front back far upper lower leftmost "
    "rightmost topmost uppermost bottommost furthest farthest most first second third fourth "
    "fifth last 1st 2nd 3rd 4th 5th next nearest lefthand righthand left-most right-most mid rear"
)
_PLACES = _words(
    "side corner edge end middle center centre front back background foreground picture image "
    "photo pic frame screen distance row dark shade view direction camera viewer rest way half "
    "part left-hand right-hand area"
)
_PREPOSITIONS = _words(
    "in on at of to from with without by near behind beside besides between among under underneath "
    "over above below beneath against around across along alongside toward towards inside outside "
    "into onto through past after before for as than like off out up down next closest closer "
    "close nearest facing opposite adjacent within amongst amid atop about away via & w w/"
)
_VERBS = _words(
    "is are was were be been being has have had having wears wear wore holds hold held sits sit "
    "sat stands stand stood lies lie lay rides ride eats eat looks look faces walks walk runs run "
    "plays carries carry talks smiles hits leans lean does do did can which where whose when while "
    "because shown seen visible cut made doing going please find get"
)
_ADVERBS = _words(
    "very really not no only just almost slightly partially partly mostly completely alone "
    "together apart directly immediately fully more less too also still kind sort so"
)
_CONJUNCTIONS = _words("and or but nor")
_COLOURS = _words(
    "red orange yellow green blue purple pink white black brown gray grey tan beige gold golden "
    "silver teal turquoise violet maroon navy khaki cream aqua magenta lime plaid stripes striped"
)
_SHADES = _words("light dark bright pale deep neon hot all solid mostly dull")
_CONTAINERS = _words(
    "glass glasses slice slices piece pieces bowl bowls cup cups bottle bottles plate plates pair "
    "group bunch pile box boxes can cans jar jars bag bags stack herd flock set basket baskets "
    "couple lot bouquet loaf pot tray trays mug mugs carton cluster stalk head"
)
_PEOPLE = _words(
    "person man woman boy girl guy lady kid child baby dude men women boys girls people player "
    "batter catcher umpire skier surfer rider gentleman male female mom dad player's players team "
    "soldier officer"
)
_CLOTHED_BY = _words("in wearing wears with dressed")
_ING_NOUNS = _words(
    "ceiling building painting wing ring king string swing railing clothing earring spring thing "
    "anything something everything nothing icing dressing siding topping awning bowling surfing "
    "sling pudding wedding drawing awnings buildings wings rings morning evening landing bedding "
    "flooring lettering lining piping stuffing trimming tubing wiring writing crossing parking "
    "dining living cooking baking skiing"
)
_ED_NOUNS = _words("red bed shed sled speed seed weed reed feed breed need deed tweed ted ned")

_TOKEN = re.compile(r"#?[a-z0-9]+(?:['’/-][a-z0-9]+)*|[,.;:!?()&]")


class _Piece(NamedTuple):
    """The words between two cuts, and the word at which the piece begins."""

    opener: str  # empty at the beginning of the text
    words: list[str]


def noun_phrases(text: str, chunker: str = "rules") -> list[str]:
    """Return the noun phrases of an expression in lower case, in order and without repetitions.

    Args:
        text: the expression.
        chunker: a key of `CHUNKERS`.

    Returns:
        The phrases. If none is found, the only phrase is the whole text, unless the text has no
        letter and no digit.

    Raises:
        ValueError: if the chunker is unknown, or if it is "spacy" and spaCy or its English model is
            not installed.
    """
    if chunker not in CHUNKERS:
        raise ValueError(f"chunker {chunker!r} is not one of {sorted(CHUNKERS)}")
    chunks = _spacy_chunks(text) if chunker == "spacy" else _cut(text)
    phrases = list(dict.fromkeys(_to_phrases(chunks)))
    whole = " ".join(text.lower().split())
    return phrases or ([whole] if any(c.isalnum() for c in whole) else [])


@functools.cache
def _spacy_model():
    """Load spaCy's English model once in each process."""
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        raise ValueError(
            'chunker "spacy" needs spaCy and its model en_core_web_sm; "rules" needs nothing'
        ) from None


def _spacy_chunks(text: str) -> list[_Piece]:
    """Return spaCy's noun chunks as pieces, each opened by the word before it."""
    chunks = []
    for chunk in _spacy_model()(text).noun_chunks:
        before = chunk.doc[chunk.start - 1].lower_ if chunk.start else ""
        chunks.append(_Piece(before, [token.lower_ for token in chunk]))
    return chunks


# ---------------------------------------------------------------- cutting


def _cut(text: str) -> list[_Piece]:
    """Cut a text into pieces; see the module's docstring."""
    tokens = _TOKEN.findall(text.lower().replace("/", " / ").replace("w / ", "w/ "))
    pieces = [_Piece("", [])]
    for i, token in enumerate(tokens):
        following = tokens[i + 1] if i + 1 < len(tokens) else ""
        piece = pieces[-1]
        if _joins(piece.words, token, following):
            piece.words.append(token)
        elif token in _ARTICLES:
            if _content(piece.words) or "one" in piece.words:  # "bench | the men"
                pieces.append(_Piece(token, []))
            else:
                piece.words.append(token)
        elif _begins_anew(piece, token, following):
            pieces.append(_Piece(token, []))
        elif token in _POSITIONS and _content(piece.words) and not _is_garment(piece, following):
            pieces.append(_Piece(token, [token]))  # "guy | left"
        else:
            piece.words.append(token)
    return pieces


def _joins(words: list[str], token: str, following: str) -> bool:
    """Return whether "and" or "of" continues a piece, as in "black and white", "glass of wine"."""
    if not words:
        return False
    if token in ("and", "&"):
        return words[-1] in _COLOURS and following in _COLOURS | _SHADES
    if token == "of":
        return words[-1] in _CONTAINERS and following not in _ARTICLES and bool(following)
    return False


def _begins_anew(piece: _Piece, token: str, following: str) -> bool:
    """Return whether the token ends the piece and opens a new one, of which it is not a word."""
    if not token[0].isalnum() and token[0] != "#":
        return True  # punctuation
    if token == "like" or token in _PREPOSITIONS - _POSITIONS:
        return True
    if token in ("next", "nearest") and (following in ("to", "the") or _content(piece.words)):
        return True
    if token in _VERBS or token in _CONJUNCTIONS:
        return True
    if token.endswith("ing") and len(token) > 4 and token not in _ING_NOUNS:
        return not _describes(piece, following)
    if token.endswith("ed") and token not in _ED_NOUNS | _COLOURS:
        ends = not following or following in _PREPOSITIONS | _ARTICLES | _POSITIONS
        return ends and bool(_content(piece.words) or piece.opener)
    return False


def _describes(piece: _Piece, following: str) -> bool:
    """Return whether an -ing word is an adjective ("sleeping dog"), not a verb ("dog sleeping")."""
    if not following or not following[0].isalnum() or _content(piece.words):
        return False
    if following in _PREPOSITIONS | _ARTICLES | _VERBS | _CONJUNCTIONS | _POSITIONS | _PRONOUNS:
        return False
    if piece.opener in ("down", "up", "out", "off"):  # "sitting down eating"
        return False
    placed = any(word in _POSITIONS | _PLACES for word in piece.words)
    return not (piece.opener and placed)  # in "on left walking dog" the word is taken as a verb


def _is_garment(piece: _Piece, following: str) -> bool:
    """Return whether "top" is clothing, as in "in red and white top", and not a position."""
    ends = not following or following in _PREPOSITIONS | _CONJUNCTIONS | _VERBS
    garments = _COLOURS | _SHADES | {"tank", "crop", "halter", "and"}
    return (
        ends
        and piece.opener in _CLOTHED_BY
        and all(word in garments for word in _content(piece.words))
    )


def _content(words: list[str]) -> list[str]:
    """Return the words without articles, positions, pronouns, adverbs and "one"."""
    idle = _ARTICLES | _POSITIONS | _PRONOUNS | _ADVERBS | {"one"}
    return [word for word in words if word not in idle]


# ---------------------------------------------------------------- phrases


def _to_phrases(pieces: list[_Piece]) -> list[str]:
    """Return the phrases of the pieces, with colours of clothing added to those who wear it."""
    phrases: list[str] = []
    for piece in pieces:
        words = _strip(piece)
        if not words:
            continue
        if words[-1] == "one":  # "the white one"
            words = words[:-1] + phrases[0].split(" in ")[0].split()[-1:] if phrases else words
            if words == ["one"]:
                continue
        if _only_colours(words) and phrases:
            if piece.opener in _CLOTHED_BY:
                _dress(phrases, words)
            continue
        phrases.append(" ".join(words))
    return phrases


def _strip(piece: _Piece) -> list[str]:
    """Return the words of a piece without articles, pronouns, positions and adverbs.

    The result is empty if the piece only names a place, such as "top right corner".
    """
    words = [w for w in piece.words if w not in _ARTICLES | _PRONOUNS | _ADVERBS]
    if words and words[-1] in _PLACES and _is_place(words):
        return []
    garment = len(words) > 1 and words[-1] == "top" and piece.opener in _CLOTHED_BY
    named = [w for w in words if w not in _POSITIONS]
    if len(named) < len(words) and named[:1] == ["corner"]:  # "top right corner pizza"
        named = named[1:]
    return named + ["top"] if named and garment else named


def _is_place(words: list[str]) -> bool:
    """Return whether all words but the last one describe a place."""
    return all(word in _POSITIONS | _PLACES | _SHADES for word in words[:-1])


def _only_colours(words: list[str]) -> bool:
    """Return whether the words are colours, with shades and "and" between them."""
    allowed = _COLOURS | _SHADES | {"and"}
    return all(word in allowed for word in words) and any(word in _COLOURS for word in words)


def _dress(phrases: list[str], colours: list[str]) -> None:
    """Append colours, as in "batter in white", to the last phrase that names a person.

    If no phrase names a person, they are appended to the last phrase.
    """
    people = [i for i, phrase in enumerate(phrases) if phrase.split()[-1] in _PEOPLE]
    wearer = people[-1] if people else len(phrases) - 1
    phrases[wearer] += " in " + " ".join(colours)


# ---------------------------------------------------------------- our own texts


def object_centric_expression(class_name: str) -> str:
    """Return the expression of a D_sem picture, "the [class name] in the middle" (Section 3.2)."""
    return f"the {class_name} in the middle"


POSITION_TEMPLATES = {
    "left": ("left {}", "the {} on the left", "{} on left", "{} on the left"),
    "right": ("right {}", "the {} on the right", "{} on right", "{} on the right"),
    "top": ("top {}", "the {} at the top", "{} on top"),
    "bottom": ("bottom {}", "the {} at the bottom", "{} on the bottom"),
    "middle": ("middle {}", "the {} in the middle", "{} in middle"),
    "top left": ("top left {}", "the {} at the top left", "{} on top left"),
    "top right": ("top right {}", "the {} at the top right", "{} on top right"),
    "bottom left": ("bottom left {}", "the {} at the bottom left", "{} on bottom left"),
    "bottom right": ("bottom right {}", "the {} at the bottom right", "{} on bottom right"),
}
"""The wordings of absolute positions, in the style of RefCOCO (our choice)."""

RELATION_TEMPLATES = {
    "left": ("{} left of the {}", "the {} left of the {}", "the {} to the left of the {}"),
    "right": ("{} right of the {}", "the {} right of the {}", "the {} to the right of the {}"),
    "above": ("{} above the {}", "the {} above the {}"),
    "below": ("{} below the {}", "the {} below the {}", "the {} under the {}"),
    "next to": ("{} next to the {}", "the {} next to the {}", "the {} near the {}"),
}
"""The wordings of the relations of a target to a landmark (our choice)."""
