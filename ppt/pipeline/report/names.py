"""What baselines and stages are called in front of people."""

_BASELINES = {
    "clip_sam_published": "CLIP+SAM, published",
    "clip_sam_best": "CLIP+SAM, best recipe",
}


def title_of(name: str) -> str:
    """clip_sam_best -> CLIP+SAM, best recipe; ris_joint -> ris joint."""
    return _BASELINES.get(name, name.replace("_", " "))
