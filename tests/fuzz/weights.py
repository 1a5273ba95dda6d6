"""Files of weights: safetensors, what torch.save writes, TorchScript, and MobileSAM."""

from __future__ import annotations

import functools
import io
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from safetensors.torch import save
from torch import Tensor, nn

from fuzz.cases import Input, Kind, Outcome, clear
from fuzz.mutate import mutated, odd, texts
from ppt.models.mobile_sam import mobile_sam, published_name
from ppt.models.weights import load_net
from ppt.toybox.backbones import WEIGHTS, build_sam

_CANARY = os.path.join(tempfile.gettempdir(), "ppt-fuzz-canary")
"""A file that hostile weights would make if anything in them was run."""

_CALLS = (
    f"cos\nsystem\n(S'touch {_CANARY}'\ntR.",
    f"cbuiltins\nexec\n(S'open({_CANARY!r}, \"w\")'\ntR.",
    f"cposix\nsystem\n(S'touch {_CANARY}'\ntR.",
    f"(S'touch {_CANARY}'\nios\nsystem\n.",
    f"ctorch._utils\n_rebuild_tensor_v2\n(cos\nsystem\n(S'touch {_CANARY}'\ntRtR.",
    f'c__builtin__\neval\n(S\'__import__("os").system("touch {_CANARY}")\'\ntR.',
)


class _Net(nn.Module):
    """A small net that TorchScript can write."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x)) * self.scale.sum()


_NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[str], str]]] = {
    "small": (_Net, str),
    "sam": (build_sam, str),
    "mobile_sam": (mobile_sam, published_name),
}


@functools.cache
def _small_state() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _Net().state_dict()


def _saved(state: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(state, stream, **options)
    return stream.getvalue()


@functools.cache
def _bases() -> dict[str, tuple[str, bytes]]:
    """Files as others publish them, by suffix and the net that they are of."""
    state, stream = _small_state(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(_Net()), stream)
    sam = WEIGHTS / "sam.safetensors"
    return {
        "safetensors": ("small", save(state)),
        "zip": ("small", _saved(state)),
        "legacy": ("small", _saved(state, _use_new_zipfile_serialization=False)),
        "nested": ("small", _saved({"state_dict": {f"module.{n}": v for n, v in state.items()}})),
        "torchscript": ("small", stream.getvalue()),
        "sam": ("sam", sam.read_bytes()),
        "sam-zip": ("sam", _saved(build_sam().state_dict())),
    }


@functools.cache
def _mobile_sam() -> bytes:
    """MobileSAM with random numbers, in half precision: half as many bytes."""
    state = mobile_sam().half().state_dict()
    return _saved({published_name(name): value for name, value in state.items()})


def _quantised() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(4, 6), 0.1, 0, torch.qint8)


def _tensors() -> st.SearchStrategy[Any]:
    return st.sampled_from(
        [
            torch.zeros(()),
            torch.zeros(0),
            torch.zeros(1).expand(4, 6),
            torch.zeros(4, 6, dtype=torch.complex64),
            torch.zeros(4, 6, dtype=torch.bool),
            torch.zeros(4, 6, dtype=torch.float16),
            torch.full((4, 6), float("nan")),
            torch.zeros(1).expand(2**20, 2**20),
            torch.eye(4).to_sparse(),
            _quantised(),
            torch.empty(4, 6, device="meta"),
            nn.Parameter(torch.zeros(4, 6)),
            _Net(),
        ]
    )


@st.composite
def _odd_states(draw: DrawFn) -> bytes:
    """A state dict with odd entries, as torch.save writes it."""
    state: Any = dict(_small_state())
    for _ in range(draw(st.integers(1, 3))):
        name: Any = draw(st.sampled_from([*state]) | texts | st.integers(0, 3))
        state[name] = draw(_tensors() | odd)
    state = draw(
        st.sampled_from([state, {"state_dict": state}, [state], None, 3, {}, {"model": state}])
    )
    try:
        return _saved(state, _use_new_zipfile_serialization=draw(st.booleans()))
    except Exception:  # torch itself cannot write it
        return pickle.dumps(0)


@st.composite
def _hostile(draw: DrawFn) -> bytes:
    """Pickles that call a function, alone and as the pickle of an archive."""
    call = draw(st.sampled_from(_CALLS)).encode()
    if draw(st.booleans()):
        return draw(st.sampled_from([call, b"\x80\x02" + call]))
    base = draw(st.sampled_from(["zip", "torchscript"]))
    changes = {"data.pkl": b"\x80\x02" + call}
    if base == "torchscript":
        code = (
            f'class _Net(Module):\n  __parameters__ = ["scale", ]\n  x = open("{_CANARY}", "w")\n'
        )
        changes = draw(
            st.sampled_from(
                [
                    changes,
                    {"code/__torch__/fuzz/weights.py": code.encode()},
                    {"constants.pkl": call},
                ]
            )
        )
    return _rezipped(_bases()[base][1], changes, draw(st.booleans()))


def _rezipped(archive: bytes, changes: Mapping[str, bytes], packed: bool) -> bytes:
    """Write a zip file again with other contents of some members."""
    stream = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(stream, "w", how) as new:
        for member in old.namelist():
            content = old.read(member)
            for name, other in changes.items():
                content = other if member.partition("/")[2] == name else content
            new.writestr(member, content)
    return stream.getvalue()


@st.composite
def _rewritten(draw: DrawFn) -> bytes:
    """An archive one of whose members is damaged, with the right checksum of the damage."""
    _, archive = _bases()[draw(st.sampled_from(["zip", "torchscript", "nested"]))]
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        member = draw(st.sampled_from(opened.namelist()))
        content = draw(mutated([opened.read(member)]))
    return _rezipped(archive, {member.partition("/")[2]: content}, False)


@st.composite
def _files(draw: DrawFn) -> Input:
    name = draw(st.sampled_from(sorted(_bases())))
    net, base = _bases()[name]
    what = draw(
        st.sampled_from(
            ["bytes"] * 4 + ["as it is", "odd", "odd", "hostile", "rewritten", "mobile_sam"]
        )
    )
    match what:
        case "bytes":
            data = draw(mutated([base]))
        case "as it is":
            data = base
        case "odd":
            name, net, data = "zip", "small", draw(_odd_states())
        case "hostile":
            name, net, data = "zip", "small", draw(_hostile())
        case "rewritten":
            name, net, data = "zip", "small", draw(_rewritten())
        case "mobile_sam":
            name, net, data = "zip", "mobile_sam", draw(mutated([_mobile_sam()]))
    suffix = "safetensors" if name in ("safetensors", "sam") else "pt"
    suffix = draw(st.sampled_from([suffix] * 6 + ["safetensors", "pt", "bin"]))
    return Input({f"weights.{suffix}": data}, {"net": net, "file": f"weights.{suffix}"})


def _check(folder: Path, about: Mapping[str, Any], run: Path) -> Outcome:
    build, name_of = _NETS[about["net"]]
    path = folder / about["file"]
    try:
        net = load_net(
            build, path, field="model.sam.weights", expected="the net", published_name=name_of
        )
    except ValueError as error:
        assert str(path) in clear(error)
        return "told"
    finally:
        assert not os.path.exists(_CANARY), "code in the weights was run"
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in build().state_dict().items()}
    assert {name: value.shape for name, value in net.state_dict().items()} == wanted
    return "right"


KINDS = {"weights": Kind(lambda run: _files(), _check, 3)}
