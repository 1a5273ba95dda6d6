"""bf16 where it may be: run here on a CPU, whose autocast is the same machinery."""

import numpy as np
import pytest
import torch

from ppt.batches.batch import Batch
from ppt.config import ClipConfig, PointGeneratorConfig, SamConfig
from ppt.models import precision
from ppt.models.build import build_image_text_encoder, build_point_generator, build_segmenter
from ppt.models.loaded import threads
from ppt.models.point_prompting import PointPrompting
from ppt.toybox.world import scene

CPU = torch.device("cpu")


@pytest.fixture
def low_precision(monkeypatch):
    """The CPU treated as a GPU is."""
    monkeypatch.setitem(precision.AUTOCAST, "cpu", precision.AUTOCAST["cuda"])


def product():
    return torch.ones(2, 2) @ torch.ones(2, 2)


def test_a_cpu_stays_in_float32():
    with precision.autocast(CPU):
        assert not torch.is_autocast_enabled("cpu")
        assert product().dtype == torch.float32


@pytest.mark.parametrize(
    ("capabilities", "onednn"),
    [
        ({"avx512_f": True, "amx_bf16": False}, True),
        ({"avx512_f": True, "amx_bf16": True}, False),  # would round to bf16
        ({"avx512_f": False, "amx_bf16": False}, False),
        ({"neon": True}, False),  # ARM
    ],
)
def test_onednn_where_it_is_quicker_and_exact(capabilities, onednn, monkeypatch):
    matmul = torch.backends.mkldnn.matmul
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    before = matmul.fp32_precision
    with precision.quick_products(CPU):
        assert matmul.fp32_precision == ("bf16" if onednn else before)
    assert matmul.fp32_precision == before != "bf16"


@pytest.mark.parametrize("rows", [4, 128, 3584])
def test_products_of_float32_are_not_rounded_to_bf16_on_this_machine(rows):
    a, b = torch.rand(rows, 128), torch.rand(128, 96)
    with precision.quick_products(CPU):
        several = a[None] @ b[None].expand(3, -1, -1)
        products = [a @ b, torch.addmm(torch.zeros(96), a, b), several[2]]
    for product in products:
        error = (product.double() - a.double() @ b.double()).abs().max()
        assert error < 1e-4  # in bf16 it is near 0.1


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_a_gpu_takes_bf16():
    assert precision.autocast(torch.device("cuda")).fast_dtype == torch.bfloat16


def test_a_gpu_trains_with_tf32():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with precision.quick_products(torch.device("cuda")):
        assert matmul.fp32_precision == "tf32"
    assert matmul.fp32_precision == before != "tf32"


def run_everything():
    """What the encoders, the generator and the decoder give for two scenes, and the gradient."""
    clip, sam = build_image_text_encoder(ClipConfig()), build_segmenter(SamConfig())
    images = [scene(5, i).image for i in range(2)]
    features = clip.encode_images(torch.stack([clip.preprocess(np.array(i)) for i in images]))
    segmenter_features = sam.encode_images(torch.stack([sam.preprocess(i) for i in images]))
    words, mask = clip.encode_words(["red circle", "the left square"])
    torch.manual_seed(0)
    generator = build_point_generator(
        PointGeneratorConfig(), clip.visual_dim, clip.text_dim, clip.num_levels
    )
    batch = Batch(
        pictures=["a", "b"],
        sizes=torch.tensor([[96, 96]] * 2),
        visual_features=features.visual_features,
        segmenter_features=segmenter_features,
        picture_index=torch.tensor([0, 1]),
        expression_ids=["0", "1"],
        texts=["red circle", "the left square"],
        word_features=words,
        word_mask=mask,
        targets=None,
    )
    model = PointPrompting(generator, sam)
    outputs = model(batch)
    rows = torch.tensor([0, 1])
    logits = model.decode(outputs, batch, rows, rows)
    logits.sigmoid().mean().backward()
    return {
        "surgery_tokens": features.surgery_tokens,
        "last_level": features.visual_features[-1],
        **segmenter_features,
        "word_features": words * mask[..., None],
        "phrases": clip.encode_phrases(["circle", ""]),
        "mask_logits": logits.detach(),
        "gradient": generator.point_head.offset_head[0].weight.grad,
        **{name: value.detach() for name, value in outputs.items()},
    }


def test_bf16_stays_near_float32_and_hands_out_float32(low_precision, monkeypatch):
    coarse = run_everything()
    monkeypatch.undo()
    exact = run_everything()
    for name, value in coarse.items():
        assert value.dtype == torch.float32, name
        assert not torch.equal(value, exact[name]), f"{name} did not run in bf16"
        error = (value - exact[name]).norm() / exact[name].norm()
        assert error < (0.25 if name == "gradient" else 0.03), (name, error)
    points = (coarse["pred_points"] - exact["pred_points"]).abs()
    assert points.mean() < 0.004 and points.max() < 0.03
    unrounded = coarse["pred_points"] != coarse["pred_points"].bfloat16().float()
    assert unrounded.float().mean() > 0.9  # coordinates are not of bf16's 256 steps


def test_threads_add_the_gradient_of_an_index_in_one_order():
    """With atomic additions, two threads would give other last bits each time."""
    torch.manual_seed(0)
    first, second = torch.randint(0, 2, (2, 40_000)).unbind()
    wide = torch.randn(40_000, 16) * 10 ** torch.randn(16)

    def gradient(num_threads):
        table = torch.zeros(2, 2, 16, requires_grad=True)
        with threads(num_threads), precision.ordered(torch.device("cpu")):
            (table[first, second] * wide).sum().backward()
        return table.grad

    expected = gradient(1)
    assert all(torch.equal(gradient(2), expected) for _ in range(20))
    assert not torch.are_deterministic_algorithms_enabled()
