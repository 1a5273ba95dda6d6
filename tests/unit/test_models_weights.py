"""Full-size random nets in the published layouts: they load, and a wrong file is told in a line."""

import json
import math
import os
import pickle
import re
import struct
import zipfile
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.openai import load_openai_model
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from torch import nn

from ppt.config import ClipConfig, ConfigError, SamConfig, load_curriculum
from ppt.curriculum.run import check_inputs
from ppt.models import loaded as models
from ppt.models.build import build_image_text_encoder, build_segmenter
from ppt.models.weights import read_state_dict

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")


class _Node(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(state):
    """A module with these tensors under these names, as OpenAI's archive holds them."""
    root = _Node()
    for name, tensor in state.items():
        *parts, leaf = name.split(".")
        node = root
        for part in parts:
            if part not in node._modules:
                node.add_module(part, _Node())
            node = node._modules[part]
        node.register_buffer(leaf, tensor)
    return torch.jit.script(root)


def shapes(build):
    with torch.device("meta"):
        state = build().state_dict()
    return {name: tensor.shape for name, tensor in state.items()}


def outline(build):
    """A state dict of full-size shapes whose every tensor is one number: a tiny file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes(build).items()}


def filled(build):
    """A state dict of full-size shapes with noise, in a tenth of the time of an initialisation."""
    noise = 0.02 * torch.randn(999_983, generator=torch.Generator().manual_seed(1))
    state = {}
    for number, (name, shape) in enumerate(shapes(build).items()):
        size = math.prod(shape)
        values = noise.roll(1009 * number).repeat(-(-size // len(noise)))[:size].view(shape)
        is_gain = name.endswith("weight") and len(shape) == 1
        state[name] = values + 1 if is_gain else values.clone()
    return state


def clip(name):
    return lambda: open_clip.CLIP(**open_clip.get_model_config(name))


def constant(tensor, *_, **__):
    with torch.no_grad():
        return tensor.fill_(0.5)


@pytest.fixture(scope="module", autouse=True)
def quick_initialisation():
    """Every number is to come from a file: those before are one constant, which costs nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "xavier_uniform_", "uniform_", "normal_"):
            patch.setattr(nn.init, name, constant)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files, at full size: about 1.3 GB, removed at the end."""
    folder = tmp_path_factory.mktemp("weights")
    sam = filled(sam_model_registry["vit_b"])
    torch.save(sam, folder / "sam_vit_b.pth")
    save_file(
        {name: tensor.half() for name, tensor in sam.items()}, folder / "sam_vit_b.safetensors"
    )
    torch.save({n: t.half() for n, t in sam.items()}, folder / "sam_vit_b_half.pth")
    halved = {name: tensor.half() for name, tensor in filled(clip("ViT-B-16")).items()}
    sizes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    archive = {name: torch.tensor(value) for name, value in sizes.items()}
    torchscript({**archive, **halved}).save(folder / "ViT-B-16.pt")
    trained = {f"module.{name}": tensor for name, tensor in filled(clip("ViT-B-32")).items()}
    torch.save({"epoch": 32, "name": "run", "state_dict": trained}, folder / "vit_b_32.pt")
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def assert_one_line(error, field, path, *words):
    message = str(error.value)
    assert "\n" not in message
    for word in (field, str(path), *words):
        assert word in message


# ---------------------------------------------------------------- what loads


def test_openais_archive_gives_what_open_clips_own_loader_gives(folder, pixels):
    path = folder / "ViT-B-16.pt"
    encoder = build_image_text_encoder(ClipConfig(name="ViT-B-16-quickgelu", weights=str(path)))
    plain = load_openai_model(str(path), precision="fp32", device="cpu")
    with torch.no_grad():
        expected = plain.encode_image(pixels, normalize=True)
    found = encoder.encode_images(pixels).surgery_tokens[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    interpreted = torch.jit.load(path, map_location="cpu").state_dict()
    settings = {"input_resolution", "context_length", "vocab_size"}
    tensors = read_state_dict(path, field="model.clip.weights")
    assert tensors.keys() == interpreted.keys() - settings
    assert all(torch.equal(tensor, interpreted[name]) for name, tensor in tensors.items())


def test_openais_archive_needs_quickgelu(folder):
    path = folder / "ViT-B-16.pt"
    with pytest.raises(ValueError) as error:
        build_image_text_encoder(ClipConfig(name="ViT-B-16", weights=str(path)))
    assert_one_line(error, "model.clip.name must be 'ViT-B-16-quickgelu'", path, "QuickGELU")


def test_a_checkpoint_of_open_clips_training_loads(folder, pixels):
    path = folder / "vit_b_32.pt"
    encoder = build_image_text_encoder(ClipConfig(name="ViT-B-32", weights=str(path)))
    plain = open_clip.create_model("ViT-B-32", pretrained=str(path)).eval()
    with torch.no_grad():
        expected = plain.encode_image(pixels, normalize=True)
    found = encoder.encode_images(pixels)
    torch.testing.assert_close(found.surgery_tokens[:, 0], expected, atol=1e-5, rtol=1e-4)
    assert [level.shape for level in found.visual_features] == [(1, 49, 768)] * 3


def test_sam_is_what_segment_anythings_own_loader_makes(folder):
    path = folder / "sam_vit_b.pth"
    found = build_segmenter(SamConfig(name="vit_b", weights=str(path))).sam.state_dict()
    expected = sam_model_registry["vit_b"](checkpoint=str(path)).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_fingerprint_is_of_the_numbers_not_of_the_file(folder):
    before = models.segmenter.cache_info().misses
    prints = [
        models.sam_fingerprint(SamConfig(name="vit_b", weights=str(folder / name)))
        for name in ("sam_vit_b.safetensors", "sam_vit_b_half.pth", "sam_vit_b.pth")
    ]
    assert prints[0] == prints[1] != prints[2]  # half precision is other numbers
    assert models.segmenter.cache_info().misses == before  # and no net is kept for it


# ---------------------------------------------------------------- tags of open_clip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the Hugging Face hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_tag_is_taken_from_open_clips_cache(hub):
    tag = "laion2b_s32b_b82k"  # has its own pixel statistics
    repository = hub / "models--laion--CLIP-ViT-L-14-laion2B-s32B-b82K"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    torch.save(outline(clip("ViT-L-14")), snapshot / "open_clip_pytorch_model.bin")
    encoder = build_image_text_encoder(ClipConfig(name="ViT-L-14", weights=tag))
    assert encoder.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert (encoder.taps, encoder.grid, encoder.visual_dim) == ((8, 16, 24), 16, 1024)
    assert all(not parameter.any() for parameter in encoder.parameters())


def test_a_tag_that_cannot_be_fetched(hub):
    with pytest.raises(ValueError) as error:
        build_image_text_encoder(ClipConfig(name="ViT-B-16", weights="laion2b_s34b_b88k"))
    assert_one_line(error, "model.clip.weights", "'laion2b_s34b_b88k'", "could not fetch", "path")


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("ViT-B-16", "openai", "model.clip.name must be 'ViT-B-16-quickgelu' for openai"),
        ("ViT-B-32", "laion400m_e32", "model.clip.name must be 'ViT-B-32-quickgelu'"),
        ("ViT-B-16", "opanai", "neither a file nor a tag of open_clip for ViT-B-16 (tags: openai"),
        ("ViT-S-16", "openai", "neither a file nor a tag of open_clip for ViT-S-16 (tags: none)"),
    ],
)
def test_a_wrong_tag_is_told_before_anything_is_fetched(hub, name, weights, words):
    with pytest.raises(ValueError) as error:
        build_image_text_encoder(ClipConfig(name=name, weights=weights))
    assert_one_line(error, words, weights)
    assert not any(hub.iterdir())


def test_the_hubs_own_description_beside_a_file_is_believed(tmp_path):
    path = tmp_path / "open_clip_model.safetensors"
    path.touch()
    described = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0, 0, 0]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError) as error:
        build_image_text_encoder(ClipConfig(name="ViT-B-16", weights=str(path)))
    assert_one_line(error, "model.clip.name must be 'ViT-B-16-quickgelu'", path)


# ---------------------------------------------------------------- what is refused

CLIP16 = ClipConfig(name="ViT-B-16")
OPENAI16 = ClipConfig(name="ViT-B-16-quickgelu")
SAM_B = SamConfig(name="vit_b")


def refuse(config, path):
    """The error of building `config` with the weights of `path`."""
    build = build_image_text_encoder if isinstance(config, ClipConfig) else build_segmenter
    with pytest.raises(ValueError) as error:
        build(config.model_copy(update={"weights": str(path)}))
    return error


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("config", "state", "words"),
    [
        (CLIP16, lambda: outline(sam_model_registry["vit_b"]), "SAM vit_b; expected CLIP ViT-B-16"),
        (SAM_B, lambda: outline(clip("ViT-B-16")), "CLIP ViT-B-16; expected SAM vit_b"),
        (SAM_B, lambda: outline(sam_model_registry["vit_l"]), "SAM vit_l; expected SAM vit_b"),
        (CLIP16, lambda: outline(clip("ViT-B-32")), "CLIP ViT-B-32; expected CLIP ViT-B-16"),
        (
            ClipConfig(name="ViT-L-14"),
            lambda: outline(clip("ViT-L-14-336")),
            "CLIP ViT-L-14-336; expected CLIP ViT-L-14",
        ),
        (CLIP16, lambda: outline(clip("RN50")), "a CLIP with a ResNet; expected"),
        (
            CLIP16,
            lambda: without(outline(clip("ViT-B-16")), "visual.proj"),
            "(visual.proj is missing, not [768, 512])",
        ),
        (
            CLIP16,
            lambda: {"vision_model.embeddings.class_embedding": torch.zeros(2)},
            "in the layout of transformers",
        ),
        (SAM_B, lambda: {"weight": torch.zeros(2)}, "no CLIP and no SAM (it begins with 'weight')"),
    ],
)
def test_a_checkpoint_of_something_else(tmp_path, config, state, words):
    torch.save(state(), path := tmp_path / "x.pt")
    part = "clip" if isinstance(config, ClipConfig) else "sam"
    assert_one_line(refuse(config, path), f"model.{part}.weights", f"{path} seems to be", words)


@pytest.mark.parametrize("name", ["sam_vit_b.pth", "sam_vit_b.safetensors", "ViT-B-16.pt"])
def test_a_download_that_was_cut_short(folder, tmp_path, name):
    path = tmp_path / name
    os.link(folder / name, whole := tmp_path / "whole")
    with whole.open("rb") as file:
        path.write_bytes(file.read(2_000_000))
    config = CLIP16 if name.startswith("ViT") else SAM_B
    assert_one_line(refuse(config, path), ".weights", path, "is cut short")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html>", "is no checkpoint: it begins with '<!DOCTYPE html>'"),
        (b"", "is empty (an interrupted download?)"),
        (b"\x80\x02}q", "is cut short or damaged"),
    ],
)
def test_no_checkpoint_at_all(tmp_path, content, words):
    (path := tmp_path / "x.pth").write_bytes(content)
    for config in (CLIP16, SAM_B):
        assert_one_line(refuse(config, path), ".weights", path, words)


def test_a_pickle_that_would_run_code_is_not_loaded(tmp_path):
    torch.save(nn.Linear(2, 2), path := tmp_path / "net.pt")
    assert_one_line(refuse(SAM_B, path), "model.sam.weights", path, "holds more than tensors")
    torch.save({"epoch": 3}, path)
    assert_one_line(refuse(SAM_B, path), "model.sam.weights", path, "holds no state dict")


# ---------------------------------------------------------------- hostile files

MORE = ("holds more than tensors", "save the net's state_dict()")
DAMAGED = ("is cut short or damaged", "get the file again")


class _Writer(nn.Module):
    """A module that writes a file when torch's own loader restores it, and when it is called."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor, bool]:
        return self.path, self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor, bool]) -> None:
        torch.save(state[1], state[0])
        self.path, self.weight, self.training = state


class _Opener:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def repack(path, change, **options):
    """Write an archive again with other members, which `change` gives by their last names."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            last = "code" if name.endswith(".py") else name.partition("/")[2]
            if last in change:
                archive.writestr(name, change[last], **options)
            else:
                archive.writestr(name, content)
    return path


@pytest.fixture
def archive(tmp_path):
    """A small TorchScript archive."""
    path = tmp_path / "archive.pt"
    torchscript({"visual.proj": torch.arange(6.0).view(2, 3), "scale": torch.ones(())}).save(path)
    return path


def test_an_archive_whose_code_would_run_is_not_loaded(tmp_path):
    path, written = tmp_path / "hostile.pt", tmp_path / "written"
    torch.jit.script(_Writer(written)).save(path)
    for config in (OPENAI16, SAM_B):
        assert_one_line(refuse(config, path), ".weights", path, *MORE)
    assert not written.exists()
    torch.jit.load(path)  # the file is what it is meant to be
    assert written.exists()


@pytest.mark.parametrize("kind", ["archive", "torch", "legacy", "plain"])
def test_a_pickle_that_would_open_a_file(tmp_path, archive, kind):
    written, path = tmp_path / "written", tmp_path / "x.pt"
    hostile = {"weight": torch.zeros(2), "x": _Opener(written)}
    if kind == "archive":
        path = repack(archive, {"data.pkl": pickle.dumps(_Opener(written), 2)})
    elif kind == "plain":
        path.write_bytes(pickle.dumps(_Opener(written)))
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=kind == "torch")
    assert_one_line(refuse(SAM_B, path), "model.sam.weights", path, *MORE)
    assert not written.exists()


def test_an_archive_holds_the_parameters_and_buffers_of_its_state_dict(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.extra = torch.ones(2)  # neither
            self.linear = nn.Linear(3, 2).bfloat16()
            self.register_buffer("view", torch.arange(6).view(2, 3).t())
            self.register_buffer("none", torch.zeros(0, 4))
            self.source = nn.BatchNorm1d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.extra

    torch.jit.script(Net()).save(path := tmp_path / "net.pt")
    expected, found = torch.jit.load(path).state_dict(), read_state_dict(path, field="x")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data/0": b""}, DAMAGED),  # the tensor is larger
        ({"data.pkl": b""}, DAMAGED),
        ({"data.pkl": b"\x80\x02}."}, DAMAGED),  # no module
        (
            {"data.pkl": b"\x80\x02CLASS)\x81r\xff\xff\xff\xff."},
            ("holds no state dict",),
        ),  # a huge memo
        ({"data.pkl": b"\x80\x02CLASS)\x81q\0}U\1ah\0sb."}, DAMAGED),  # holds itself
        ({"code": b"print(1)"}, DAMAGED),
        ({"byteorder": b"big"}, DAMAGED),
    ],
)
def test_a_damaged_archive(archive, change, words):
    with zipfile.ZipFile(archive) as file:
        root = re.search(rb"c__torch__[^\n]*\n[^\n]*\n", file.read("archive/data.pkl"))[0]
    repack(archive, {name: content.replace(b"CLASS", root) for name, content in change.items()})
    assert_one_line(refuse(OPENAI16, archive), "model.clip.weights", archive, *words)


def test_a_flipped_bit_in_an_archive(archive):
    content = bytearray(archive.read_bytes())
    content[content.index(torch.arange(6.0).numpy().tobytes()) + 5] ^= 1
    archive.write_bytes(content)
    assert_one_line(refuse(SAM_B, archive), "model.sam.weights", archive, *DAMAGED)


@pytest.mark.parametrize("kind", ["archive", "torch"])
def test_a_zip_bomb(tmp_path, archive, kind):
    path = archive
    if kind == "torch":
        torch.save({"weight": torch.zeros(9)}, path := tmp_path / "saved.pt")
    zeros = repack(path, {"data.pkl": bytes(2**20)}, compress_type=zipfile.ZIP_DEFLATED)
    words = ("data.pkl' in it is compressed", "get the file again")
    assert_one_line(refuse(SAM_B, zeros), "model.sam.weights", path, *words)
    plain = repack(path, {"data.pkl": b"hello"})
    content = bytearray(plain.read_bytes())
    entry = content.rindex(b"/data.pkl") - len(path.stem) - 46  # in the list at the file's end
    assert content[entry : entry + 4] == b"PK\1\2"
    content[entry + 20 : entry + 28] = struct.pack("<2I", 4_000_000_000, 4_000_000_000)
    path.write_bytes(content)
    words = ("claims to hold 4,000,", "get the file again")
    assert_one_line(refuse(SAM_B, path), "model.sam.weights", path, *words)


HUGE = {"weight": {"dtype": "F32", "shape": [25_000_000_000], "data_offsets": [0, 10**11]}}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 10**11) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b"\xff" * 9,
        struct.pack("<Q", len(json.dumps(HUGE))) + json.dumps(HUGE).encode(),
        struct.pack("<Q", 50) + json.dumps(HUGE).replace("F32", "F99").encode()[:50],
        b"PK\3\4",
    ],
)
def test_a_false_header_of_safetensors(tmp_path, content):
    (path := tmp_path / "x.safetensors").write_bytes(content)
    for config in (CLIP16, SAM_B):
        words = ("is cut short, damaged or no safetensors file", "get the file again")
        assert_one_line(refuse(config, path), ".weights", path, *words)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_file(tmp_path, suffix):
    (folder := tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(pipe := tmp_path / f"pipe{suffix}")
    (empty := tmp_path / f"empty{suffix}").touch()
    for config in (CLIP16, SAM_B):
        assert_one_line(refuse(config, folder), ".weights", folder, "is a folder")
        assert_one_line(refuse(config, pipe), ".weights", pipe, "is no regular file")
        assert_one_line(refuse(config, empty), ".weights", empty, "is empty")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({1: torch.zeros(2)}, "holds no state dict"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "holds no state dict"),
        ({"x": torch.zeros(2, device="meta")}, "holds no state dict"),
        (
            {"visual.class_embedding": torch.zeros(2), "visual.conv1.weight": torch.zeros(2)},
            "other shapes",
        ),
        ({"image_encoder.pos_embed": torch.zeros(())}, "other shapes"),
    ],
)
def test_tensors_of_another_kind(tmp_path, state, words):
    torch.save(state, path := tmp_path / "x.pt")
    for config in (CLIP16, SAM_B):
        assert_one_line(refuse(config, path), ".weights", path, words)


# ---------------------------------------------------------------- before a run


def test_no_file(tmp_path):
    missing = tmp_path / "x.pt"
    assert_one_line(refuse(SAM_B, missing), "model.sam.weights", missing, "does not exist")
    assert_one_line(refuse(CLIP16, missing), "model.clip.weights", missing, "neither a file")
    assert_one_line(refuse(CLIP16, tmp_path), "model.clip.weights", tmp_path, "is a folder")


def test_a_run_ends_before_it_starts(tmp_path):
    overrides = ["model.sam.name=vit_b", f"model.sam.weights={tmp_path}/x.pth"]
    curriculum = load_curriculum(ROOT / "curricula" / "quickstart.yaml", overrides)
    with pytest.raises(ConfigError, match="model.sam.weights: .*x.pth does not exist"):
        check_inputs(curriculum)


def test_an_archive_that_claims_to_span_disks(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"w": torch.zeros(3)}, path)
    data, end = path.read_bytes()[:-22], path.read_bytes()[-22:]
    path.write_bytes(data + struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data), 2) + end)
    with pytest.raises(ValueError, match="is cut short: its end is missing or damaged"):
        read_state_dict(path, field="model.clip.weights")


def test_a_name_in_a_file_cannot_steer_a_terminal(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"\x1b[2J.bias": torch.zeros(4)}, path)
    config = ClipConfig(name="ViT-B-16", weights=str(path))
    with pytest.raises((ValueError, ConfigError)) as caught:
        build_image_text_encoder(config)
    assert "\\x1b[2J.bias" in str(caught.value)
    assert "\x1b" not in str(caught.value)
