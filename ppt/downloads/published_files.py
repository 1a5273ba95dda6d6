"""The weights and data sets that `ppt download` knows: addresses, sizes, checksums and licences.

Every file has a SHA-256. OpenAI publishes those of CLIP, as part of the addresses. The authors of
the other files publish none (the names of SAM's files end in the first digits of their MD5): their
checksums are those that users of the files have recorded, and `sha256_by` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ppt.config import ConfigError
from ppt.config.messages import near, shown

AUTHORS = "published by its authors"
USERS = "recorded by users of the file; its authors publish none"

WEIGHTS, REFER = "weights", "data/refer"
"""The folders in which the paper's curricula look for weights and for data sets."""

_COCO_LICENCE = (
    "the pictures are under the terms of Flickr and of their owners, see cocodataset.org"
)
_REFER_LICENCE = "none is stated for the annotations; the code that reads them is Apache-2.0"
_REFER_SITE = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"


@dataclass(frozen=True)
class PublishedFile:
    """A file of weights, or the archive of a data set, as its authors publish it."""

    name: str  # as `ppt download` takes it
    file: str  # the name of the file
    urls: tuple[str, ...]  # further ones are copies, tried in their order
    size: str  # for people
    sha256: str
    sha256_by: str
    licence: str
    folder: str  # where it belongs, relative to the folder of the data and weights
    model: str | None = None  # of weights: `model.clip.name` or `model.sam.name`
    unpacks: str | None = None  # of an archive: the folder in it

    def place(self, root: Path) -> Path:
        """Return the path of the file, or of the unpacked folder, below `root`."""
        return root / self.folder / (self.unpacks or self.file)


def _clip(name: str, model: str, file: str, size: str, sha256: str) -> PublishedFile:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    licence = "MIT (OpenAI)"
    return PublishedFile(name, file, (url,), size, sha256, AUTHORS, licence, WEIGHTS, model)


def _sam(name: str, model: str, file: str, size: str, sha256: str) -> PublishedFile:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    licence = "Apache-2.0 (Meta)"
    return PublishedFile(name, file, (url,), size, sha256, USERS, licence, WEIGHTS, model)


def _refer(name: str, size: str, sha256: str, copied: str) -> PublishedFile:
    url = f"{_REFER_SITE}/{name}.zip"
    urls = (url, f"https://web.archive.org/web/{copied}id_/{url}")
    return PublishedFile(
        *(name, f"{name}.zip", urls, size, sha256, USERS, _REFER_LICENCE, REFER), unpacks=name
    )


FILES = {
    entry.name: entry
    for entry in (
        _clip(
            *("clip_vit_b_32", "ViT-B-32-quickgelu", "ViT-B-32.pt", "about 353 MB"),
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
        ),
        _clip(
            *("clip_vit_b_16", "ViT-B-16-quickgelu", "ViT-B-16.pt", "about 350 MB"),
            "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
        ),
        _clip(
            *("clip_vit_l_14", "ViT-L-14-quickgelu", "ViT-L-14.pt", "about 932 MB"),
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
        ),
        _clip(
            *("clip_vit_l_14_336", "ViT-L-14-336-quickgelu", "ViT-L-14-336px.pt", "about 933 MB"),
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
        ),
        _sam(
            *("sam_vit_b", "vit_b", "sam_vit_b_01ec64.pth", "375 MB"),
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        _sam(
            *("sam_vit_l", "vit_l", "sam_vit_l_0b3195.pth", "1.2 GB"),
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        _sam(
            *("sam_vit_h", "vit_h", "sam_vit_h_4b8939.pth", "2.6 GB"),
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        PublishedFile(
            "mobile_sam",
            "mobile_sam.pt",
            ("https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",),
            "40.7 MB",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            USERS,
            "Apache-2.0",
            WEIGHTS,
            "mobile_sam",
        ),
        _refer(
            *("refcoco", "54 MB"),
            "7f924bb7ed8dc4568058e4ff626281918d56e5206f4c868c5a80f088f38c8bf0",
            "20220413011718",
        ),
        _refer(
            *("refcoco+", "46 MB"),
            "5f1238112d63199e68da54a28f201471909b21ded7ed79a57d51b4c1443c6b45",
            "20220413011656",
        ),
        _refer(
            *("refcocog", "57 MB"),
            "3d1f7e5b2ff2205940bf59de55f861f5f2cc1403fb980669933a7f9af1aa8211",
            "20220413012904",
        ),
        PublishedFile(
            "coco_train2014",
            "train2014.zip",
            ("http://images.cocodataset.org/zips/train2014.zip",),
            "13.5 GB",
            "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
            USERS,
            _COCO_LICENCE,
            f"{REFER}/images",
            unpacks="train2014",
        ),
    )
}
"""What can be downloaded, by name."""


def published_file(name: str) -> PublishedFile:
    """Return what `ppt download` knows by a name. Raises ConfigError for other names."""
    if name not in FILES:
        raise ConfigError(
            f"no download is called {shown(name)}{near(name, FILES)} (there are {', '.join(FILES)})"
        )
    return FILES[name]


def published_weights(model: str) -> PublishedFile | None:
    """Return the weights that are published for a `model.clip.name` or a `model.sam.name`."""
    return next((entry for entry in FILES.values() if entry.model == model), None)
