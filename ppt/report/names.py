"""The names of baselines and stages as users see them."""

_BASELINES = {
    "clip_sam_published": "CLIP+SAM, published",
    "clip_sam_best": "CLIP+SAM, best recipe",
}


def title_of(name: str) -> str:
    """Return the name that users see.

    `clip_sam_best` becomes "CLIP+SAM, best recipe", and `ris_joint` becomes "ris joint".
    """
    return _BASELINES.get(name, name.replace("_", " "))
