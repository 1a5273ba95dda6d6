"""The noun phrases of referring expressions, and the templates of synthesised expressions.

In Section 3.3 every noun phrase of an expression becomes a candidate. The rules of this module find
the phrases without a parser, in the brief style of RefCOCO. A text is cut into pieces at
prepositions, verbs, conjunctions and articles. A phrase is what remains of a piece without its
articles, position words ("left", "second") and places ("corner", "background").

Some words have two meanings, between which their neighbours decide. A picture, a camera or a side
is an object where it begins the expression ("picture on the wall") or is held, and a place
otherwise ("man in the picture"). "top" is clothing after a colour ("red top") or an owner, and a
position otherwise. A participle before a noun describes it ("sleeping dog"); one that follows its
noun is a verb, and so no part of a phrase ("giraffe bent", "person skiing").

"person in red" remains one phrase, because a colour alone is not an
object. "glass of red wine" remains one phrase as well. "the white one" takes the noun of the first
phrase ("white horse").

Letters of every script belong to words. The lists of words are English, so that a text in another
language is cut at its punctuation only.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

CHUNKERS = {"rules": "rules-3", "spacy": "spacy-2/en_core_web_sm"}
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
_PICTURES = _words("picture image photo photograph pic frame screen camera")
_PARTS = _words("side corner edge end row half part area")
_PLACES = (
    _words(
        "middle center centre front back background foreground distance dark shade view direction "
        "viewer rest way left-hand right-hand"
    )
    | _PICTURES
    | _PARTS
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
    "because shown seen visible cut made doing going please find get that's thats who's whos it's "
    "he's she's there's"
)
_COPULAS = _words(
    "is are was were be been being looks look that's thats who's whos it's he's she's"
)
_HAVING = _words(
    "with without w has have having holds hold holding held carries carry carrying using and or "
    "above over below under beneath underneath beside behind"
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
_GARMENT_KINDS = _words(
    "tank crop halter tube bikini pajama knit lace floral flowered flowery striped checkered "
    "checked patterned printed dotted polka-dot sleeveless sleeved strapless plain sparkly"
)
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
_OWNERS = _words("mans womans childs ladys babys mens womens childrens")
_OWN_PARTS = _words("back top front bottom rear")
_BODY_PARTS = _words(
    "hand hands arm arms leg legs foot feet eye eyes ear ears knee shoulder elbow wrist finger "
    "thumb paw wing horn tusk shoe boot glove sleeve ski skate"
)
_ING_NOUNS = _words(
    "ceiling building painting wing ring king string swing railing clothing earring spring thing "
    "anything something everything nothing icing dressing siding topping awning bowling surfing "
    "sling pudding wedding drawing awnings buildings wings rings morning evening landing bedding "
    "flooring lettering lining piping stuffing trimming tubing wiring writing crossing parking "
    "dining living cooking baking skiing"
)
_ACTIVITIES = _words("skiing surfing bowling cooking baking")
_CRAFTS = _words("writing painting drawing building crossing landing dressing parking")
_ED_NOUNS = _words(
    "red bed shed sled speed seed weed reed feed breed need deed tweed ted ned moped steed seaweed "
    "flatbed daybed bobsled thoroughbred"
)
_PREDICATES = _words(
    "bent open shut asleep awake upright straight flat tall hidden broken fallen torn worn lit "
    "hung eaten bitten half-eaten taken thrown drawn shaven stuck built grown knelt slept laid "
    "swung flown driven ridden frozen"
)

_PUNCTUATION = ",.;:!?()&，。、；：！？（）،؛؟।"
_MARKS = "".join(c for c in map(chr, range(0x20000)) if unicodedata.category(c).startswith("M"))
_WORD = rf"[^\W_](?:[^\W_]|[{_MARKS}\u200c\u200d])*"  # Indic vowels are marks, as accents are
_TOKEN = re.compile(rf"#?{_WORD}(?:['/-]{_WORD})*|[{_PUNCTUATION}]")


class _Piece(NamedTuple):
    """The words between two cuts, and the word at which the piece begins."""

    opener: str  # empty at the beginning of the text
    words: list[str]


def noun_phrases(text: str, chunker: str = "rules") -> list[str]:
    """Return the noun phrases of an expression, in order and without repetitions.

    They are in lower case and in the Unicode normal form C.

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
    text = unicodedata.normalize("NFC", text).replace("’", "'")
    chunks = _spacy_chunks(text) if chunker == "spacy" else _cut(text)
    phrases = list(dict.fromkeys(_to_phrases(chunks)))
    whole = " ".join(_lower(text).split())
    return phrases or ([whole] if any(c.isalnum() for c in whole) else [])


def _lower(text: str) -> str:
    """Return a text in lower case; the lower case of some letters has another normal form."""
    return unicodedata.normalize("NFC", text.lower())


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
        chunks.append(_Piece(before, [_lower(token.text) for token in chunk]))
    return chunks


# ---------------------------------------------------------------- cutting


def _cut(text: str) -> list[_Piece]:
    """Cut a text into pieces; see the module's docstring."""
    tokens = _TOKEN.findall(_lower(text).replace("/", " / ").replace("w / ", "w/ "))
    pieces = [_Piece("", [])]
    for i, token in enumerate(tokens):
        following, then = [*tokens[i + 1 : i + 3], "", ""][:2]
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
        elif token in _POSITIONS and _content(piece.words):
            if _is_garment(piece.words, token, following) or _is_owned(
                piece.words[-1], token, following, then
            ):
                piece.words.append(token)
            else:
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
    if token in _ACTIVITIES | _CRAFTS:
        return _is_activity(piece.words, token, following)
    if _is_ing_verb(token):
        return not _describes(piece, following)
    if _is_participle(token):
        return _ends(following) and bool(_content(piece.words) or piece.opener)
    return token == "half" and _is_participle(following) and bool(_content(piece.words))


def _is_ing_verb(token: str) -> bool:
    return token.endswith("ing") and len(token) > 4 and token not in _ING_NOUNS


def _is_participle(token: str) -> bool:
    """Return whether a word is a participle in -ed or a word that is used in the same places."""
    regular = token.endswith("ed") and token not in _ED_NOUNS | _COLOURS
    return regular or token in _PREDICATES


def _is_activity(words: list[str], token: str, following: str) -> bool:
    """Return whether a word is what someone does, as in "man painting", and not a thing."""
    if words and words[-1] in _PEOPLE | {"one"}:
        return True
    if not _content(words):
        return False
    return following in _ARTICLES or (token in _ACTIVITIES and _ends(following))


def _ends(following: str) -> bool:
    """Return whether the word before `following` is not followed by a noun that it describes."""
    others = _PREPOSITIONS | _ARTICLES | _VERBS | _CONJUNCTIONS | _POSITIONS | _PRONOUNS
    return not following[:1].isalnum() or following in others or _is_ing_verb(following)


def _describes(piece: _Piece, following: str) -> bool:
    """Return whether an -ing word is an adjective ("sleeping dog"), not a verb ("dog sleeping")."""
    if _content(piece.words) or (_ends(following) and not _is_ing_verb(following)):
        return False
    if piece.opener in ("down", "up", "out", "off"):  # "sitting down eating"
        return False
    if piece.opener in _COPULAS and not _ARTICLES.intersection(piece.words):  # "is eating pizza"
        return False
    if _is_participle(piece.opener):  # "seated eating pizza"
        return False
    placed = any(word in _POSITIONS | _PLACES for word in piece.words)
    return not (piece.opener and placed)  # in "on left walking dog" the word is taken as a verb


def _is_garment(words: list[str], token: str, following: str) -> bool:
    """Return whether "top" is clothing, as in "red and white top", and not a position."""
    if token != "top" or not _names_garment(words):
        return False
    return following in _PEOPLE or (_ends(following) and following not in _POSITIONS)


def _names_garment(words: list[str]) -> bool:
    """Return whether "top" is clothing after these words, if no noun follows it."""
    shade = words[-1] in _SHADES and not _content(words[:-1])  # not "traffic light top"
    return shade or words[-1] in _COLOURS | _GARMENT_KINDS


def _is_owned(owner: str, token: str, following: str, then: str) -> bool:
    """Return whether a position tells one of an owner's parts, as in "man's left hand".

    The apostrophe may be missing. A part may also be a position by its word: "man's back".
    """
    if owner.endswith("'s") or owner in _OWNERS:
        return token in _OWN_PARTS if _ends(following) else True
    return owner.endswith("s") and following in _BODY_PARTS and then not in _PLACES


def _content(words: list[str]) -> list[str]:
    """Return the words without articles, positions, pronouns, adverbs and "one"."""
    idle = _ARTICLES | _POSITIONS | _PRONOUNS | _ADVERBS | {"one"}
    return [word for word in words if word not in idle]


# ---------------------------------------------------------------- phrases


def _to_phrases(pieces: list[_Piece]) -> list[str]:
    """Return the phrases of the pieces, with colours of clothing added to those who wear it."""
    phrases: list[str] = []
    predicate = False
    for piece, next_opener in zip(pieces, [p.opener for p in pieces[1:]] + [""], strict=True):
        words = _strip(piece, next_opener, is_first=not phrases)
        if not words:
            continue
        predicate = bool(phrases) and _is_predicate(piece, words, predicate)
        if predicate:
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
    return [phrase for phrase in phrases if not _tells_no_noun(phrase)]


def _tells_no_noun(phrase: str) -> bool:
    """Return whether a phrase is only what someone does or is: the "bent" of "bent over man"."""
    return all(_is_participle(word) or word in _ACTIVITIES for word in phrase.split())


def _is_predicate(piece: _Piece, words: list[str], after_predicate: bool) -> bool:
    """Return whether a piece says what an object is like: "laptop that is open and dusty"."""
    says = piece.opener in _COPULAS or (after_predicate and piece.opener in _CONJUNCTIONS)
    return says and words[-1] not in _PEOPLE and not _ARTICLES.intersection(piece.words)


def _strip(piece: _Piece, next_opener: str, is_first: bool) -> list[str]:
    """Return the words of a piece without articles, pronouns, positions and adverbs.

    The result is empty if the piece only names a place, such as "top right corner".

    Args:
        piece: the piece.
        next_opener: the word at which the next piece begins.
        is_first: whether no piece before this one gave a phrase.
    """
    words = [w for w in piece.words if w not in _ARTICLES | _PRONOUNS | _ADVERBS]
    if words and words[-1] in _PLACES and _is_place(words):
        begins = is_first and piece.opener not in _PREPOSITIONS and not _is_ing_verb(piece.opener)
        if words[-1] in _PICTURES and (begins or piece.opener in _HAVING):
            return [w for w in words if w in _PICTURES | _SHADES]
        if begins and words[-1] in _PARTS and words == words[-1:] and _has_more(next_opener):
            return words
        return []
    named = [w for i, w in enumerate(words) if w not in _POSITIONS or _is_noun(words, i)]
    if len(named) < len(words) and named[:1] == ["corner"]:  # "top right corner pizza"
        named = named[1:]
    return named


def _has_more(next_opener: str) -> bool:
    """Return whether a part ("corner") is told more of, and not what it is a part of."""
    return next_opener in (_PREPOSITIONS | _VERBS) - {"of"} or _is_ing_verb(next_opener)


def _is_noun(words: list[str], i: int) -> bool:
    """Return whether a position is a noun: clothing ("red top") or a part ("man's back")."""
    if i == 0:
        return False
    if words[i] == "top" and _names_garment(words[:i]):
        return True
    owned = words[i - 1].endswith("'s") or words[i - 1] in _OWNERS
    return owned and words[i] in _OWN_PARTS and i == len(words) - 1


def _is_place(words: list[str]) -> bool:
    """Return whether all words but the last one describe a place."""
    return all(word in _POSITIONS | _PLACES | _SHADES | {"hand"} for word in words[:-1])


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
