"""A run whose stages were never trained: what predicts or serves can be tried with it at once."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from ppt.config import ClipConfig, Model, PointGeneratorConfig, SamConfig
from ppt.models.build import build_image_text_encoder, build_point_generator, build_segmenter
from ppt.store.nodes import Store
from ppt.training.checkpoint import checkpoint_files

STAGES = ["semantic_alignment", "refinement.1", "refinement.2"]
TINY = PointGeneratorConfig(
    num_queries=3, num_points=4, hidden_size=32, num_heads=4, ffn_size=32, fusion_size=16
)


def untrained_run(root: Path) -> Path:
    """A run's folder with a checkpoint for each of `STAGES`, as training and the summary write."""
    clip, sam = build_image_text_encoder(ClipConfig()), build_segmenter(SamConfig())
    encoders = {"clip": clip.fingerprint, "sam": sam.fingerprint}
    model = Model(point_generator=TINY)
    store, digests = Store(str(root)), {}
    for seed, stage in enumerate(STAGES):
        torch.manual_seed(seed)
        generator = build_point_generator(
            model.point_generator, clip.visual_dim, clip.text_dim, clip.num_levels
        )
        node = store.node("checkpoints", {"stage": stage, "encoders": encoders})
        for name, content in checkpoint_files(generator, None, {"history": []}).items():
            node.write_bytes(name, content)
        node.write_manifest(history=[], seconds=1.0, model=model.model_dump(mode="json"))
        digests[f"checkpoints.{stage}"] = node.digest
    summary = {"stages": [{"name": name} for name in STAGES], "digests": digests}
    (root / "quickstart").mkdir(parents=True)
    (root / "quickstart" / "summary.json").write_text(json.dumps(summary))
    return root / "quickstart"
