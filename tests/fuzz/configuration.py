"""Curricula as YAML files, their bases, and overrides."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from common import QUICKSTART, ROOT
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from fuzz.cases import Content, Input, Kind, Link, Outcome, Pipe, clear, told
from fuzz.mutate import changed, containers, mutated, odd, places, plain, texts
from ppt.config import ConfigError, Curriculum, load_curriculum, parse_curriculum
from ppt.experiments.sweep import curriculum_of, load_sweep, trials_of


@functools.cache
def _bases() -> tuple[bytes, ...]:
    paths = sorted((ROOT / "curricula").glob("*.yaml")) + sorted(ROOT.glob("curricula/paper/*"))
    return tuple(path.read_bytes() for path in paths if path.suffix == ".yaml")


@functools.cache
def _tree() -> dict[str, Any]:
    return yaml.safe_load(QUICKSTART.read_bytes())


_usual = st.sampled_from(
    [1, 2, 3, 0.5, 1.0, "1", "08", "0.25", "1e-3", "1_000", "+2", " 2 ", "true", True, "yes"]
)
"""Values that many keys take."""


def _dumped(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode(
            errors="surrogatepass"
        )
    except (yaml.YAMLError, ValueError):
        return repr(tree).encode(errors="surrogatepass")


@st.composite
def _bombs(draw: DrawFn) -> bytes:
    """Small files that ask for much: nesting, aliases, many keys, long numbers."""
    n = draw(st.sampled_from([3, 30, 300, 3_000, 30_000]))
    alias = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    return draw(
        st.sampled_from(
            [
                "[" * n,
                "{a: " * n,
                "- " * n,
                "".join(f"{' ' * i}a:\n" for i in range(min(n, 300))),
                "? " * n,
                "&a [*a]",
                "a: &a {b: *a}",
                f"a0: &a0 [x]\n{alias}",
                "name: " + "9" * n,
                "num_buckets: 1" + "0" * n,
                "".join(f"k{i}: {i}\n" for i in range(n)),
                "name: x\n" * n,
                "'" * n,
                "!!python/object/apply:os.system [touch x]",
                "name: !!python/name:os.system",
                "<<: {name: x}",
                "%YAML 9.9\n---\nname: x",
                "name: x\n---\nname: y",
                "stages: {" + ", ".join(f"s{i}: {{num_epochs: 1}}" for i in range(n)) + "}",
                "\x00",
                "name: \x07",
                "a: |" + "\n  x" * n,
            ]
        )
    ).encode()


@st.composite
def _curricula(draw: DrawFn) -> Input:
    yamls = st.one_of(
        changed(_tree(), _usual, most=1).map(_dumped),
        changed(_tree(), _usual, most=1).map(_dumped),
        changed(_tree(), _usual, most=3).map(_dumped),
        changed(_tree(), containers).map(_dumped),
        changed(_tree(), plain, most=6).map(_dumped),
        changed(_tree(), texts).map(_dumped),
        mutated(_bases()),
        _bombs(),
        odd.map(_dumped),
    )
    content: Content = draw(yamls)
    files: dict[str, Content] = {}
    if draw(st.integers(0, 3)) == 0:
        base = draw(
            st.sampled_from(["base.yaml", "c.yaml", "../../../etc/passwd", "/dev/zero", ".", ""])
        )
        files["base.yaml"] = content
        content = f"base: {base}\n".encode() + draw(
            _bombs() | st.just(b"name: x\n") | texts.map(lambda text: _dumped({"name": text}))
        )
    if draw(st.integers(0, 20)) == 0:
        content = draw(st.sampled_from([Pipe(), Link("/dev/zero"), Link("c.yaml"), b""]))
    return Input({**files, "c.yaml": content})


def _check_curriculum(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    path = folder / "c.yaml"
    try:
        curriculum = load_curriculum(path)
    except ConfigError as error:
        return told(error)
    _is_stable(curriculum)
    tree = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    if "base" not in tree:
        _agree(tree, curriculum, ())
    return "right"


def _is_stable(curriculum: Curriculum) -> None:
    again = parse_curriculum(curriculum.model_dump(mode="json"))
    assert again == curriculum
    assert all(math.isfinite(v) for v in _floats(curriculum.model_dump()))


def _floats(tree: Any) -> list[float]:
    found = []
    for place in places(tree):
        value = tree
        for key in place:
            value = value[key]
        if isinstance(value, float):
            found.append(value)
    return found


def _agree(written: Any, value: Any, place: tuple[str, ...]) -> None:
    """Check that a value is what is written, by rules that anyone would expect."""
    told = f"{'.'.join(place)}: {written!r} became {value!r}"
    match written:
        case dict():
            for key, inner in written.items():
                _agree(
                    inner,
                    value[key] if isinstance(value, dict) else getattr(value, key),
                    (*place, key),
                )
        case list():
            assert len(written) == len(value), told
            for number, inner in enumerate(written):
                _agree(inner, value[number], (*place, str(number)))
        case str() if value is None or written in ("", "~", "null", "Null", "NULL"):
            pass  # a key without a value is as one that is left out
        case str() if isinstance(value, bool):
            truths = {"true": True, "yes": True, "on": True, "1": True, "t": True, "y": True}
            assert truths.get(written.lower(), False) == value, told
        case str() if isinstance(value, int):
            assert int(written) == value if "." not in written else float(written) == value, told
        case str() if isinstance(value, float):
            assert float(written) == value, told
        case str():
            assert str(value) in (written, str(Path(written))), told


# ---------------------------------------------------------------- overrides


@functools.cache
def _keys() -> list[str]:
    more = ["seed", "store", "num_buckets", "model.clip.weights", "data.referring", "stages.x"]
    return [*(".".join(map(str, place)) for place in places(_tree())), *more]


@st.composite
def _overrides(draw: DrawFn) -> Input:
    keys = st.sampled_from(_keys()) | st.sampled_from(_keys()) | texts
    values = st.one_of(
        texts,
        plain.map(str),
        containers.map(lambda v: repr(v)),
        texts.map(lambda text: f"/data/{text}"),
        st.sampled_from(
            ["/set #1/runs", "@data", "%x", "a: b", "[1] photos", "{", "[" * 5_000, '"']
        ),
    )
    paths = st.tuples(st.sampled_from(["store", "model.clip.weights", "model.sam.weights"]), values)
    usual = st.tuples(st.sampled_from(_keys()), _usual.map(str))
    right = st.sampled_from(
        [("seed", "7"), ("num_buckets", "08"), ("training.learning_rate", "1e-3"), ("name", "a.b")]
    )
    pairs = st.one_of(right, right, usual, usual, paths, paths, st.tuples(keys, values))
    given = draw(st.lists(pairs, min_size=1, max_size=3))
    return Input({}, {"given": given})


def _check_overrides(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    given: list[tuple[str, str]] = about["given"]
    overrides = [f"{key}={value}" for key, value in given]
    try:
        curriculum = load_curriculum(QUICKSTART, overrides)
    except ConfigError as error:
        for line in str(error).splitlines():
            clear(line)
        return told(error)
    _is_stable(curriculum)
    for key, written in {o.partition("=")[0]: o.partition("=")[2] for o in overrides}.items():
        if written[:1] in ("[", "{", "'", '"') or written in ("null", "~"):
            continue
        later = [other for other, _ in given if key != other and key.startswith(f"{other}.")]
        if not later:
            value: Any = curriculum
            for part in key.split("."):
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            _agree(written, value, (key,))
    return "right"


# ---------------------------------------------------------------- sweeps


@functools.cache
def _sweep() -> dict[str, Any]:
    tree = yaml.safe_load((ROOT / "curricula/sweeps/stages_and_queries.yaml").read_bytes())
    ranges = {
        "training.learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
        "stages.ris_joint.num_epochs": {"min": 1, "max": 3},
    }
    return {**tree, "curriculum": str(QUICKSTART), "search": "random", "space": ranges}


@st.composite
def _sweeps(draw: DrawFn) -> Input:
    whole = _sweep()
    if draw(st.booleans()):
        whole = {**whole, "search": "grid", "space": {"seed": [1, 2], "num_buckets": [3]}}
    content = draw(
        st.one_of(
            changed(whole, _usual, most=1).map(_dumped),
            changed(whole, plain, most=2).map(_dumped),
            changed(whole, odd, most=2).map(_dumped),
            mutated([_dumped(whole)]),
            _bombs(),
        )
    )
    return Input({"s.yaml": content})


def _check_sweep(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    try:
        sweep = load_sweep(folder / "s.yaml")
        for number, values in enumerate(trials_of(sweep)[:3]):
            curriculum = curriculum_of(sweep, f"{number:02d}", values)
            _is_stable(curriculum)
            assert curriculum.name == f"{sweep.name}.{number:02d}"
    except ConfigError as error:
        return told(error)
    return "right"


KINDS = {
    "sweep": Kind(lambda run: _sweeps(), _check_sweep, 0.7),
    "curriculum": Kind(lambda run: _curricula(), _check_curriculum, 2),
    "overrides": Kind(lambda run: _overrides(), _check_overrides, 1.5),
}
