"""MobileSAM in its published layout: what loads, what is refused, and the numbers it gives."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything import sam_model_registry
from torch import Tensor

from ppt.batches.features import read_segmenter_features
from ppt.config import Model, PointRecipe, SamConfig
from ppt.images.masks import decode_rle
from ppt.models import loaded
from ppt.models.build import build_segmenter
from ppt.models.mobile_sam import mobile_sam, published_name
from ppt.steps.encode import EncodePhrases, EncodePictures
from ppt.steps.label import LabelObjectCentric
from ppt.steps.step import Step
from ppt.store.nodes import BucketOutput, Node, Store
from ppt.store.schema import SAMPLES
from ppt.toybox.world import scene

WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)

# ---------------------------------------------------------------- the published layout


def conv_norm(name: str, width: int, before: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """A convolution without bias, `before` channels for each group, and its batch norm."""
    norm = ("weight", "bias", "running_mean", "running_var")
    return {
        f"{name}.c.weight": (width, before, kernel, kernel),
        **{f"{name}.bn.{part}": (width,) for part in norm},
        f"{name}.bn.num_batches_tracked": (),
    }


def affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of mobile_sam.pt: the encoder written out, the rest as in SAM ViT-B."""
    shapes = {
        **conv_norm("patch_embed.seq.0", WIDTHS[0] // 2, 3, 3),
        **conv_norm("patch_embed.seq.2", WIDTHS[0], WIDTHS[0] // 2, 3),
    }
    for level, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
        for block in range(depth):
            name = f"layers.{level}.blocks.{block}"
            if level == 0:
                shapes |= conv_norm(f"{name}.conv1", 4 * width, width, 1)
                shapes |= conv_norm(f"{name}.conv2", 4 * width, 1, 3)
                shapes |= conv_norm(f"{name}.conv3", width, 4 * width, 1)
                continue
            shapes |= {f"{name}.attn.attention_biases": (HEADS[level], WINDOWS[level] ** 2)}
            shapes |= affine(f"{name}.attn.norm", width)
            shapes |= affine(f"{name}.attn.qkv", 3 * width, width)
            shapes |= affine(f"{name}.attn.proj", width, width)
            shapes |= affine(f"{name}.mlp.norm", width)
            shapes |= affine(f"{name}.mlp.fc1", 4 * width, width)
            shapes |= affine(f"{name}.mlp.fc2", width, 4 * width)
            shapes |= conv_norm(f"{name}.local_conv", width, 1, 3)
        if level < 3:
            after = WIDTHS[level + 1]
            shapes |= conv_norm(f"layers.{level}.downsample.conv1", after, width, 1)
            shapes |= conv_norm(f"layers.{level}.downsample.conv2", after, 1, 3)
            shapes |= conv_norm(f"layers.{level}.downsample.conv3", after, after, 1)
    shapes |= affine("norm_head", 320) | affine("head", 1000, 320)
    shapes |= {"neck.0.weight": (256, 320, 1, 1), "neck.2.weight": (256, 256, 3, 3)}
    shapes |= affine("neck.1", 256) | affine("neck.3", 256)
    with torch.device("meta"):
        sam = sam_model_registry["vit_b"]().state_dict()
    return {f"image_encoder.{name}": shape for name, shape in shapes.items()} | {
        name: tuple(tensor.shape)
        for name, tensor in sam.items()
        if not name.startswith("image_encoder.")
    }


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random numbers in the published layout, of a size that lets every part of them matter."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_shapes().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            values = torch.tensor(7)
        elif name.endswith("running_var"):
            values = 0.5 + values.abs()
        elif len(shape) > 1 and "attention_biases" not in name:
            values = values / np.prod(shape[1:]) ** 0.5
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values = 0.3 * values
        state[name] = values
    return state


@pytest.fixture(scope="module")
def config(state, tmp_path_factory) -> SamConfig:
    path = tmp_path_factory.mktemp("mobile") / "mobile_sam.pt"
    torch.save(state, path)
    return SamConfig(name="mobile_sam", weights=str(path))


@pytest.fixture(scope="module")
def segmenter(config):
    return build_segmenter(config)


def test_every_tensor_has_its_published_name_and_shape() -> None:
    with torch.device("meta"):
        ours = mobile_sam().state_dict()
    names = {published_name(name): tuple(tensor.shape) for name, tensor in ours.items()}
    assert len(names) == len(ours)
    assert names == published_shapes()


def test_every_number_of_the_file_is_in_the_net(segmenter, state) -> None:
    found = segmenter.sam.state_dict()
    assert all(torch.equal(value, state[published_name(name)]) for name, value in found.items())
    assert sum(p.numel() for p in segmenter.parameters()) == 10_130_092


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("image_encoder.neck.0.weight", None, "is missing, not [256, 320, 1, 1]"),
        (
            "image_encoder.layers.2.blocks.5.attn.attention_biases",
            (5, 49),
            "is [5, 49], not [5, 196]",
        ),
        ("image_encoder.layers.4.blocks.0.conv1.c.weight", (2,), "is [2], not known there"),
    ],
)
def test_another_layout_is_refused_in_a_line(state, tmp_path, name, shape, words) -> None:
    path = tmp_path / "x.pt"
    changed = {key: value for key, value in state.items() if key != name}
    torch.save(changed if shape is None else {**changed, name: torch.zeros(shape)}, path)
    with pytest.raises(ValueError) as error:
        build_segmenter(SamConfig(name="mobile_sam", weights=str(path)))
    message = str(error.value)
    assert message.startswith(f"model.sam.weights: {path} seems to be MobileSAM; expected")
    assert f"({name} {words})" in message and "\n" not in message


def test_it_is_no_sam_of_segment_anything(config) -> None:
    with pytest.raises(ValueError, match="seems to be MobileSAM; expected SAM vit_b"):
        build_segmenter(SamConfig(name="vit_b", weights=config.weights))


# ---------------------------------------------------------------- the numbers


def written_out(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The encoder by the published tensors and torch's functions alone: [I, 3, s, s] pixels."""

    def tensors(name: str) -> tuple[Tensor, Tensor]:
        return state[f"image_encoder.{name}.weight"], state[f"image_encoder.{name}.bias"]

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"image_encoder.{name}.c.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, groups)
        mean, var = (state[f"image_encoder.{name}.bn.running_{s}"] for s in ("mean", "var"))
        return F.batch_norm(x, mean, var, *tensors(f"{name}.bn"))

    def attention(name: str, x: Tensor, window: int, heads: int) -> Tensor:
        """Each window of tokens [I, H, W, D] by itself, the padding at its end included."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        biases = state[f"image_encoder.{name}.attention_biases"]
        place = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offset = (place[:, None] - place).abs()
        bias = biases[:, offset[..., 0] * window + offset[..., 1]]
        out = torch.empty_like(x)
        for top in range(0, x.shape[1], window):
            for left in range(0, x.shape[2], window):
                part = (slice(None), slice(top, top + window), slice(left, left + window))
                tokens = F.layer_norm(x[part].flatten(1, 2), x.shape[-1:], *tensors(f"{name}.norm"))
                qkv = F.linear(tokens, *tensors(f"{name}.qkv")).unflatten(-1, (heads, -1))
                q, k, v = qkv.transpose(1, 2).chunk(3, dim=-1)
                weights = (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1)
                found = F.linear((weights @ v).transpose(1, 2).flatten(2), *tensors(f"{name}.proj"))
                out[part] = found.unflatten(1, (window, window))
        return out[:, :height, :width]

    def norm_2d(name: str, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], *tensors(name), eps=1e-6)
        return x.permute(0, 3, 1, 2)

    x = conv("patch_embed.seq.2", F.gelu(conv("patch_embed.seq.0", x, 2)), 2)
    for level, depth in enumerate(DEPTHS):
        for block in range(depth):
            name = f"layers.{level}.blocks.{block}"
            if level == 0:
                y = F.gelu(conv(f"{name}.conv2", F.gelu(conv(f"{name}.conv1", x))))
                x = F.gelu(x + conv(f"{name}.conv3", y))
                continue
            tokens = x.permute(0, 2, 3, 1)
            tokens = tokens + attention(f"{name}.attn", tokens, WINDOWS[level], HEADS[level])
            tokens = conv(f"{name}.local_conv", tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            y = F.layer_norm(tokens, tokens.shape[-1:], *tensors(f"{name}.mlp.norm"))
            y = F.gelu(F.linear(y, *tensors(f"{name}.mlp.fc1")))
            x = (tokens + F.linear(y, *tensors(f"{name}.mlp.fc2"))).permute(0, 3, 1, 2)
        if level < 3:
            name = f"layers.{level}.downsample"
            x = F.gelu(conv(f"{name}.conv1", x))
            x = F.gelu(conv(f"{name}.conv2", x, 1 if level == 2 else 2))
            x = conv(f"{name}.conv3", x)
    x = norm_2d("neck.1", F.conv2d(x, state["image_encoder.neck.0.weight"]))
    return norm_2d("neck.3", F.conv2d(x, state["image_encoder.neck.2.weight"], padding=1))


def test_the_encoder_equals_the_architecture_written_out(segmenter, state) -> None:
    """At a size whose windows are padded, as they are at 1024 pixels."""
    pixels = torch.randn(2, 3, 320, 320, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = segmenter.sam.image_encoder(pixels)
        expected = written_out(state, pixels)
    assert found.shape == (2, 256, 20, 20)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.ascontiguousarray(scene(3, 0).image[:60])


@pytest.fixture(scope="module")
def features(segmenter, picture) -> dict[str, Tensor]:
    return segmenter.encode_images(segmenter.preprocess(picture)[None])


def test_a_picture_becomes_a_mask(segmenter, features) -> None:
    assert {n: tuple(f.shape[1:]) for n, f in features.items()} == segmenter.feature_shapes
    assert segmenter.feature_shapes == {"image_embeddings": (256, 64, 64)}
    sizes = torch.tensor([[60, 96]])
    logits, scores = segmenter.decode(
        features,
        torch.tensor([0]),
        torch.tensor([[[0.5, 0.5], [0.2, 0.9]]]),
        torch.tensor([[1, 0]]),
        sizes,
        multimask_output=True,
    )
    assert logits.shape == (1, 3, 256, 256) and scores.shape == (1, 3)
    (mask,) = segmenter.finish_batch(logits[:, 0], sizes)
    assert mask.shape == (60, 96) and mask.dtype == torch.bool


def test_a_picture_is_encoded_and_labelled(config, segmenter, picture, features, tmp_path) -> None:
    """Through the steps, which load the file again: the stored features are the same numbers."""
    store, model = Store(str(tmp_path)), Model(sam=config)
    Image.fromarray(picture).save(buffer := io.BytesIO(), "PNG")
    sample = {
        "picture": "p",
        "image": buffer.getvalue(),
        "height": 60,
        "width": 96,
        "class_name": "circle",
        "expressions": [{"expression_id": "e", "text": "a circle"}],
    }
    samples = store.node("samples", "test", buckets=1)
    samples.write_bucket(0, BucketOutput({"data": pa.Table.from_pylist([sample], SAMPLES)}))
    samples.write_manifest()

    def carry_out(step: Step) -> Node:
        node = step.node(store)
        node.write_bucket(0, step(0))
        node.write_manifest()
        return node

    encoded = carry_out(EncodePictures(samples, model, "test"))
    assert loaded.sam_fingerprint(config) == segmenter.fingerprint
    stored = read_segmenter_features(encoded.map(0), [0])
    assert stored.keys() == features.keys() == {"image_embeddings"}
    assert torch.equal(stored["image_embeddings"], features["image_embeddings"].half().float())

    phrases = carry_out(EncodePhrases.of(["circle", ""], model.clip, 1, "test"))
    step = LabelObjectCentric(samples, encoded, phrases, model, PointRecipe(), "test")
    (row,) = carry_out(step).read(0).to_pylist()
    (candidate,) = row["candidates"]
    assert (row["picture"], candidate["phrase"]) == ("p", "circle")
    assert decode_rle(candidate["mask"], 60, 96).any()
    loaded.segmenter.cache_clear()
