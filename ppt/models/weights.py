"""The weights of the frozen nets: checkpoints are read without running any code in them.

A state dict is read from safetensors, from what `torch.save` wrote (weights only) or from a
TorchScript archive (`ppt.models.torchscript`), which is how OpenAI publishes CLIP. A file that does
not fit is refused with a message of one line.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ppt.config.messages import one_line
from ppt.models.torchscript import check_members, read_torchscript

Net = TypeVar("Net", bound=nn.Module)

RANDOM = "random"
"""As `weights` of a net: seeded random numbers, for tests of shapes and speed."""

SAM_WIDTHS = {"vit_b": 768, "vit_l": 1024, "vit_h": 1280}
"""The published models of segment_anything and the width of their image encoders."""

_OPENAI_SETTINGS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's archives


def build_net(
    build: Callable[[], Net],
    weights: str | Path | None,
    *,
    field: str,
    expected: str,
    published_name: Callable[[str], str] = str,
) -> Net:
    """Build a net with the weights that the configuration names.

    Args:
        build: makes the net with random numbers.
        weights: the path of a checkpoint, or `RANDOM`.
        field: the field of the configuration that holds `weights`, for messages.
        expected: what the checkpoint should be of, for messages.
        published_name: gives the name by which the checkpoint calls a tensor of the net; by
            default it is the same.

    Raises:
        ValueError: no weights are named, or the file is not what it should be. See `load_net`.
    """
    if weights is None:
        raise ValueError(
            f"{field} must be the path of a checkpoint of {expected} ({RANDOM!r} is for tests only)"
        )
    if weights == RANDOM:
        return random_net(build)
    path = Path(weights).expanduser()
    return load_net(build, path, field=field, expected=expected, published_name=published_name)


def random_net(build: Callable[[], Net]) -> Net:
    """Build a net whose random numbers are the same each time; torch's generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def refuse_weights(field: str, weights: str | None) -> None:
    """Raise ValueError where weights are named for a net that the package brings with it."""
    if weights is not None:
        raise ValueError(f"{field}: the toybox has its own, got {weights!r}")


def load_net(
    build: Callable[[], Net],
    path: Path,
    *,
    field: str,
    expected: str,
    published_name: Callable[[str], str] = str,
) -> Net:
    """Build a net with the weights of a file, in float32. Arguments as for `build_net`.

    The names and shapes in the file are compared with those of the net before anything large is
    built.

    Raises:
        ValueError: the file is not what was expected. The message is one line that names `field`
            and `path` and, where the file is a checkpoint of something else, what it seems to be.
    """
    state = read_state_dict(path, field=field)
    with torch.device("meta"):
        wanted = {published_name(name): value for name, value in build().state_dict().items()}
    for name in sorted(state.keys() | wanted.keys()):
        found, needed = (list(s[name].shape) if name in s else None for s in (state, wanted))
        if found != needed:
            is_there = "missing" if found is None else found
            should_be = "known there" if needed is None else needed
            told = f"seems to be {describe(state)}; expected {expected}"
            raise ValueError(
                one_line(f"{field}: {path} {told} ({name} is {is_there}, not {should_be})")
            )
    net = build()
    net.load_state_dict({name: state[published_name(name)] for name in net.state_dict()})
    return net


def read_state_dict(path: Path, *, field: str) -> dict[str, Tensor]:
    """Read the named tensors of a checkpoint, also of one that open_clip's training saved.

    Raises ValueError with a message of one line for a file that is no checkpoint, is cut short or
    holds other objects than tensors.
    """
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        what = "is a folder, not a checkpoint" if path.is_dir() else what
        raise ValueError(f"{field}: {path} {what}")
    if not path.stat().st_size:
        raise ValueError(f"{field}: {path} is empty (an interrupted download?)")
    try:
        found = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except OSError as error:
        raise ValueError(f"{field}: {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(one_line(f"{field}: {path} {error}")) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(_is_named(*item) for item in state.items())
    ):
        raise ValueError(f"{field}: {path} holds no state dict (named tensors)")
    return {
        name.removeprefix("module."): tensor
        for name, tensor in state.items()
        if name not in _OPENAI_SETTINGS
    }


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, in which only OpenAI publishes CLIPs."""
    if not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False


def _is_named(name: Any, value: Any) -> bool:
    """Return whether an entry of a state dict is a name and a tensor that can be copied."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized


AGAIN = "get the file again"
"""What to do about a damaged checkpoint, for messages."""


def _read_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # a false header may name a dtype that torch has not
        reason = _first_line(error)
        raise ValueError(
            f"is cut short, damaged or no safetensors file ({reason}): {AGAIN}"
        ) from error


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(32)
    archive = start.startswith(b"PK")
    if archive and not _has_end(path):
        raise ValueError("is cut short: its end is missing or damaged (an interrupted download?)")
    if not archive and not start.startswith(b"\x80"):  # nor a pickle
        raise ValueError(f"is no checkpoint: it begins with {start.decode('latin1')!r}")
    try:
        if archive:
            check_members(path)
            if is_torchscript(path):
                return read_torchscript(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        raise ValueError(
            "holds more than tensors, or is damaged; it is not loaded, for a pickle can run code "
            "(save the net's state_dict())"
        ) from error
    except OSError:
        raise
    except Exception as error:  # both readers raise what the damaged bytes lead them to
        raise ValueError(f"is cut short or damaged ({_first_line(error)}): {AGAIN}") from error


def _has_end(path: Path) -> bool:
    """Return whether a zip archive has an end that can be read."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # it claims to span several disks
        return False


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


# ---------------------------------------------------------------- what a file seems to be


def describe(state: Mapping[str, Tensor]) -> str:
    """Say in a few words what a state dict seems to be."""
    try:
        return _describe(state)
    except (IndexError, TypeError, ValueError):  # a known name with a shape of another kind
        return "no CLIP and no SAM (its tensors have other shapes)"


def sam_name(state: Mapping[str, Tensor]) -> str | None:
    """Return the name in `model.sam.name` of a state dict; None if it is no SAM that can be built.

    Raises IndexError for a known name with a shape of another kind.
    """
    if "image_encoder.pos_embed" in state:
        width = state["image_encoder.pos_embed"].shape[-1]
        return next((name for name, of in SAM_WIDTHS.items() if of == width), None)
    return "mobile_sam" if "image_encoder.patch_embed.seq.0.c.weight" in state else None


def clip_name(state: Mapping[str, Tensor]) -> str | None:
    """Return open_clip's name of a state dict; None if it is no plain ViT of open_clip.

    The name says nothing about the activation. Raises IndexError, TypeError or ValueError for known
    names with shapes of another kind.
    """
    if not {"visual.class_embedding", "visual.conv1.weight"} <= state.keys():
        return None
    shape, text = _clip_shape(state)
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision = {key: config["vision_cfg"].get(key) for key in shape}
        if vision == shape and config["text_cfg"].get("width") == text and name.startswith("ViT-"):
            return name
    return None


def _clip_shape(state: Mapping[str, Tensor]) -> tuple[dict[str, int], int | None]:
    """Return the sizes of a CLIP's image tower, and the width of its text tower."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    depth = len({k.split(".")[3] for k in state if k.startswith("visual.transformer.resblocks.")})
    positions = state.get("visual.positional_embedding", torch.empty(1))
    size = round((len(positions) - 1) ** 0.5) * patch
    text = state["ln_final.weight"].shape[0] if "ln_final.weight" in state else None
    return {"width": width, "layers": depth, "patch_size": patch, "image_size": size}, text


def _describe(state: Mapping[str, Tensor]) -> str:
    if name := sam_name(state):
        return "MobileSAM" if name == "mobile_sam" else f"SAM {name}"
    if "image_encoder.pos_embed" in state:
        return f"a SAM of width {state['image_encoder.pos_embed'].shape[-1]}"
    if "visual.class_embedding" in state and "visual.conv1.weight" in state:
        if name := clip_name(state):
            return f"CLIP {name}"
        shape, _ = _clip_shape(state)
        return (
            f"a CLIP ViT of width {shape['width']}, {shape['layers']} blocks, patch "
            f"{shape['patch_size']}, for {shape['image_size']} pixels"
        )
    for prefix, name in (
        ("visual.layer1.", "a CLIP with a ResNet"),
        ("visual.trunk.", "a CLIP with an image tower of timm"),
        ("vision_model.", "a CLIP in the layout of transformers, not of open_clip"),
        ("vision_encoder.", "a SAM in the layout of transformers, not of segment-anything"),
        ("image_encoder.trunk.", "a SAM 2"),
    ):
        if any(key.startswith(prefix) for key in state):
            return name
    return f"no CLIP and no SAM (it begins with {next(iter(state))!r})"
