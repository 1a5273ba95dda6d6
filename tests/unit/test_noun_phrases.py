"""The chunker on every expression of miniref (read through one by one) and RefCOCO's habits."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppt.labels.noun_phrases import (
    CHUNKERS,
    POSITION_TEMPLATES,
    RELATION_TEMPLATES,
    noun_phrases,
    object_centric_expression,
)
from ppt.synthesis.relations import position_words

SHARED = Path(__file__).parents[3] / "shared" / "data"

MINIREF = {
    "woman in the swimsuit": ["woman", "swimsuit"],
    "the girl under the pink umbrella": ["girl", "pink umbrella"],
    "pink umbrella": ["pink umbrella"],
    "the open umbrella behind the woman": ["open umbrella", "woman"],
    "white horse on the left": ["white horse"],
    "left horse rearing up": ["horse"],
    "dark horse on the right": ["dark horse"],
    "the brown horse next to the white one": ["brown horse", "white horse"],
    "the round clock on the pole": ["round clock", "pole"],
    "clock": ["clock"],
    "silver car on the left": ["silver car"],
    "car parked behind the pole": ["car", "pole"],
    "giraffe on left": ["giraffe"],
    "the giraffe in the back": ["giraffe"],
    "giraffe on the right": ["giraffe"],
    "the giraffe bending its neck": ["giraffe", "neck"],
    "motorcycle in front": ["motorcycle"],
    "bike with the license plate on its front fender": ["bike", "license plate", "fender"],
    "motorcycle in the back left": ["motorcycle"],
    "bike against the wall on the left": ["bike", "wall"],
    "white dog lying on the street": ["white dog", "street"],
    "the sleeping dog": ["sleeping dog"],
    "man in a white cap": ["man", "white cap"],
    "the man holding the motorcycle": ["man", "motorcycle"],
    "old motorcycle next to the man": ["old motorcycle", "man"],
    "black bag on the handlebars of the bike": ["black bag", "handlebars", "bike"],
    "the slice of chocolate cake": ["slice of chocolate cake"],
    "gold fork to the right of the cake": ["gold fork", "cake"],
    "man in striped shirt on left": ["man", "striped shirt"],
    "tall man": ["tall man"],
    "woman with short black hair cutting the cake": ["woman", "short black hair", "cake"],
    "person in the middle": ["person"],
    "the big sheet cake on the table": ["big sheet cake", "table"],
    "big giraffe on the left": ["big giraffe"],
    "giraffe closest to the people": ["giraffe", "people"],
    "smaller giraffe by the ladder": ["smaller giraffe", "ladder"],
    "giraffe on the right in back": ["giraffe"],
    "person in the dark at the left edge": ["person"],
    "zebra in front": ["zebra"],
    "the biggest zebra at the bottom": ["biggest zebra"],
    "middle zebra": ["zebra"],
    "man in a black suit and red tie": ["man", "black suit", "red tie"],
    "woman in camouflage uniform": ["woman", "camouflage uniform"],
    "soldier on right": ["soldier"],
    "batter in white with the blue helmet": ["batter in white", "blue helmet"],
    "player on left walking": ["player"],
    "umpire in black in the middle": ["umpire in black"],
    "catcher in the red helmet": ["catcher", "red helmet"],
    "rightmost player": ["player"],
    "green board on the left": ["green board"],
    "black board on far right": ["black board"],
    "right most snowboard": ["snowboard"],
    "elephant in front": ["elephant"],
    "baby elephant on right": ["baby elephant"],
    "elephant in back on left": ["elephant"],
    "the wine bottle": ["wine bottle"],
    "bottle left of the glass": ["bottle", "glass"],
    "glass of red wine": ["glass of red wine"],
    "empty chair behind the table": ["empty chair", "table"],
    "man in the gray shirt": ["man", "gray shirt"],
    "black microwave at bottom right": ["black microwave"],
    "man with straw hat on right": ["man", "straw hat"],
    "man in the sunglasses and white shirt in the middle": ["man", "sunglasses", "white shirt"],
    "woman in blue on left": ["woman in blue"],
    "first elephant on left": ["elephant"],
    "baby elephant on the right": ["baby elephant"],
    "sandwich on the left": ["sandwich"],
    "hot dog on top right": ["hot dog"],
    "hot dog with mustard on the bottom": ["hot dog", "mustard"],
    "man in a white shirt": ["man", "white shirt"],
    "empty wine glass in his hand": ["empty wine glass", "hand"],
    "soldier on the right with a cap on": ["soldier", "cap"],
    "officer in the hat": ["officer", "hat"],
    "left guy": ["guy"],
    "man in the middle reading": ["man"],
    "bench the men are sitting on": ["bench", "men"],
}

HABITS = {
    "the red car left of the blue house": ["red car", "blue house"],
    "left mushroom": ["mushroom"],
    "the person in green": ["person in green"],
    "red car to the left of the person in blue": ["red car", "person in blue"],
    "the flower next to the red umbrella": ["flower", "red umbrella"],
    "car under the house": ["car", "house"],
    "umbrella near the lamp": ["umbrella", "lamp"],
    "guy left": ["guy"],
    "second guy from the left in blue": ["guy in blue"],
    "far right guy in red with bat": ["guy in red", "bat"],
    "man wearing red": ["man in red"],
    "lady dressed in pink": ["lady in pink"],
    "guy in black and white shirt": ["guy", "black and white shirt"],
    "black and white cat on the couch": ["black and white cat", "couch"],
    "woman in black top": ["woman", "black top"],
    "girl in tank top on right": ["girl", "tank top"],
    "man, left side, blue shirt": ["man", "blue shirt"],
    "the laptop with a cat on it": ["laptop", "cat"],
    "person sitting down eating pizza": ["person", "pizza"],
    "person on left eating pizza": ["person", "pizza"],
    "top right corner pizza slice": ["pizza slice"],
    "bottom half of the sandwich": ["sandwich"],
    "back of the man's head": ["man's head"],
    "horse nearest the fence": ["horse", "fence"],
    "nearest elephant": ["elephant"],
    "cream colored couch": ["cream colored couch"],
    "girl w/ umbrella": ["girl", "umbrella"],
    "bowl of oranges": ["bowl of oranges"],
    "zebra facing us": ["zebra"],
    "car and car": ["car"],
    # Nothing is named: the whole text.
    "second from left": ["second from left"],
    "left": ["left"],
    "TOP  Right": ["top right"],
    "#24": ["#24"],
}


PLACES_AND_OBJECTS = {
    # Objects: they begin the expression, or someone or something has them.
    "picture on the wall above bed": ["picture", "wall", "bed"],
    "photo of the dog": ["photo", "dog"],
    "camera in his hand": ["camera", "hand"],
    "frame with flowers": ["frame", "flowers"],
    "the image next to the clock": ["image", "clock"],
    "there is a picture on the wall": ["picture", "wall"],
    "the screen on the right": ["screen"],
    "left picture": ["picture"],
    "dark picture on the left": ["dark picture"],
    "top right picture frame": ["picture frame"],
    "old photo of a train": ["old photo", "train"],
    "a picture of a giraffe in the picture": ["picture", "giraffe"],
    "corner near the door": ["corner", "door"],
    "side with the handle": ["side", "handle"],
    "half with mushrooms": ["half", "mushrooms"],
    "man with camera": ["man", "camera"],
    "girl holding a picture of a cat": ["girl", "picture", "cat"],
    "lamp and picture": ["lamp", "picture"],
    "bed below the picture": ["bed", "picture"],
    "laptop screen": ["laptop screen"],
    # Places: of the image, or of something that is named.
    "man in the picture": ["man"],
    "cat in the picture frame": ["cat"],
    "dog on the left of the photo": ["dog"],
    "in the picture, the dog": ["dog"],
    "woman facing the camera": ["woman"],
    "boy with his back to the camera": ["boy"],
    "corner of the table": ["table"],
    "edge of the bed": ["bed"],
    "side of the bus": ["bus"],
    "row of bikes on the left": ["bikes"],
    "guy on right hand side": ["guy"],
    "left side of picture": ["left side of picture"],
    "left hand side of photo": ["left hand side of photo"],
    "bottom left of photo": ["bottom left of photo"],
    "corner": ["corner"],
}

TOPS_AND_PARTS = {
    "black top": ["black top"],
    "red top on left": ["red top"],
    "the floral top": ["floral top"],
    "woman black top": ["woman black top"],
    "red top girl": ["red top girl"],
    "white top, left": ["white top"],
    "black top sitting": ["black top"],
    "boy in light blue top": ["boy", "light blue top"],
    "girl's top": ["girl's top"],
    "top left": ["top left"],
    "top pizza": ["pizza"],
    "the top one": ["the top one"],
    "red car top": ["red car"],
    "white one on top": ["white one"],
    "traffic light top": ["traffic light"],
    "man in red top row": ["man in red"],
    "womans left hand": ["womans hand"],
    "woman's left hand": ["woman's hand"],
    "woman’s left hand": ["woman's hand"],
    "girls left hand": ["girls hand"],
    "elephants left ear": ["elephants ear"],
    "mans back": ["mans back"],
    "person on the horse's back": ["person", "horse's back"],
    "boys left": ["boys"],
    "girls left hand side": ["girls"],
    "the man's left": ["man's"],
    "two zebras right": ["two zebras"],
}

PREDICATES = {
    "tall giraffe bent": ["tall giraffe"],
    "giraffe bent over": ["giraffe"],
    "giraffe with its neck bent": ["giraffe", "neck"],
    "bent over man": ["man"],
    "person skiing": ["person"],
    "guy skiing down hill": ["guy", "hill"],
    "woman cooking": ["woman"],
    "man painting a wall": ["man", "wall"],
    "dog crossing the street": ["dog", "street"],
    "the one skiing": ["the one skiing"],
    "umbrella open": ["umbrella"],
    "laptop open on the table": ["laptop", "table"],
    "sandwich half eaten": ["sandwich"],
    "zebra hidden behind tree": ["zebra", "tree"],
    "car parked, red": ["car"],
    "man seated eating pizza": ["man", "pizza"],
    "giraffe standing tall": ["giraffe"],
    "laptop that is open": ["laptop"],
    "laptop that's open": ["laptop"],
    "man who is eating pizza": ["man", "pizza"],
    "elephant that is bigger": ["elephant"],
    "the bus which is yellow and big": ["bus"],
    "bowl that is full and the spoon": ["bowl", "spoon"],
    "man in checkered and red shirt": ["man", "red shirt"],
    "open and empty box": ["empty box"],
    # Before its noun a participle describes it, and a noun may end like a participle.
    "bent giraffe": ["bent giraffe"],
    "skiing person": ["skiing person"],
    "parked car": ["parked car"],
    "half eaten pizza": ["half eaten pizza"],
    "there is a sleeping dog": ["sleeping dog"],
    "there is a red painting": ["red painting"],
    "white dining table": ["white dining table"],
    "painting on the wall": ["painting", "wall"],
    "zebra crossing": ["zebra crossing"],
    "red moped": ["red moped"],
    "boy who is batter": ["boy", "batter"],
    "the man who is the umpire": ["man", "umpire"],
    "this is pizza": ["pizza"],
    "girl dressed in blue": ["girl in blue"],
    "skiing": ["skiing"],
    "broken": ["broken"],
}

SCRIPTS = {
    "café table": ["café table"],
    "cafe\N{COMBINING ACUTE ACCENT} table": ["café table"],
    "CAFE\N{COMBINING ACUTE ACCENT}": ["café"],
    "jalapeño pepper": ["jalapeño pepper"],
    "ÉCLAIR on plate": ["éclair", "plate"],
    "naïve crème brûlée in bowl": ["naïve crème brûlée", "bowl"],
    "smørrebrød left": ["smørrebrød"],
    "fußgänger, right": ["fußgänger"],
    "красная машина": ["красная машина"],
    "红色的车，左边的狗": ["红色的车", "左边的狗"],
    "赤い車": ["赤い車"],
    "लाल किताब on the table": ["लाल किताब", "table"],
    "الكلب الأحمر، القطة": ["الكلب الأحمر", "القطة"],
    "red_car": ["red car"],
    "dog 🐶 with ball": ["dog", "ball"],
}

ALL = {**MINIREF, **HABITS, **PLACES_AND_OBJECTS, **TOPS_AND_PARTS, **PREDICATES, **SCRIPTS}


def test_the_golden_list_is_all_of_miniref():
    with (SHARED / "miniref" / "refcoco" / "refs(unc).p").open("rb") as stream:
        refs = pickle.load(stream, encoding="latin1")
    assert {s["sent"] for ref in refs for s in ref["sentences"]} == set(MINIREF)


@pytest.mark.parametrize(("text", "phrases"), ALL.items())
def test_phrases(text, phrases):
    assert noun_phrases(text) == phrases


SHORTHAND = st.sampled_from(["the", "left", "in", "red", "of", "one", "and", "top", "man"])


@given(st.text(max_size=60) | st.lists(SHORTHAND).map(" ".join))
@example("#")
@example("player #5")
@settings(max_examples=200, deadline=None)
def test_any_text_with_a_letter_or_digit_has_a_phrase(text):
    phrases = noun_phrases(text)
    assert bool(phrases) == any(c.isalnum() for c in text)
    assert all(phrase.strip() for phrase in phrases)
    assert len(phrases) == len(set(phrases))


def test_an_unknown_chunker_is_named():
    with pytest.raises(ValueError, match="'parser' is not one of"):
        noun_phrases("a car", chunker="parser")
    assert set(CHUNKERS) == {"rules", "spacy"}


def test_spacy_is_only_used_when_asked_for():
    try:
        import en_core_web_sm  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="spaCy"):
            noun_phrases("a car", chunker="spacy")
    else:
        assert noun_phrases("the red car near the house", "spacy") == ["red car", "house"]


def test_templates_name_what_they_are_of():
    assert object_centric_expression("tench") == "the tench in the middle"
    for word, wordings in POSITION_TEMPLATES.items():
        assert all(word in w and noun_phrases(w.format("dog")) == ["dog"] for w in wordings)
    for wordings in RELATION_TEMPLATES.values():
        assert all(noun_phrases(w.format("dog", "car")) == ["dog", "car"] for w in wordings)


def test_every_word_of_the_templates_is_known_to_the_toybox():
    from ppt.toybox.expressions import VOCABULARY

    templates = [*POSITION_TEMPLATES.values(), *RELATION_TEMPLATES.values()]
    words = {w for wordings in templates for text in wordings for w in re.findall("[a-z]+", text)}
    assert words <= set(VOCABULARY)


def test_positions_have_templates():
    places = [np.array([x, y]) for x in (0.2, 0.5, 0.8) for y in (0.2, 0.5, 0.8)]
    assert {w for place in places for w in position_words(place, [])} == set(POSITION_TEMPLATES)
