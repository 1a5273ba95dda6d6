"""`ppt doctor`: nothing there, a partial RefCOCO, miniref, wrong weights; each answer useful."""

from __future__ import annotations

import functools
import json
import pickle
import re
import shutil
import socket
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import ray
import torch
from common import SMALL
from PIL import Image
from segment_anything import sam_model_registry
from stored_tables import blob, label
from typer.testing import CliRunner

from ppt.batches.targets import target_table
from ppt.config import load_curriculum
from ppt.config.named import CURRICULA
from ppt.doctor import Check, cost, data_sets, encoders, examine, examine_machine, machine
from ppt.doctor.cost import (
    CANDIDATES_OF_A_TEXT,
    WORDS_OF_A_TEXT,
    estimate,
    memory_to_encode,
    row_bytes,
)
from ppt.doctor.data_sets import check_data
from ppt.doctor.published import Content
from ppt.jobs.cli import app
from ppt.models.build import (
    build_image_text_encoder,
    build_segmenter,
    outline_image_text_encoder,
    outline_segmenter,
)
from ppt.store.arrays import tensor_bytes
from ppt.store.schema import LABELS

ROOT = Path(__file__).parents[2]
DATA = next((p / "shared/data" for p in ROOT.parents if (p / "shared/data").is_dir()), ROOT)
PAPER = ROOT / "curricula" / "paper" / "refcoco.yaml"
PHOTOS = ROOT / "curricula" / "photos.yaml"
QUICKSTART = ROOT / "curricula" / "quickstart.yaml"
ROLES = ("referring", "validation", "evaluation")
OUTLINES = {f.__name__: functools.cache(f) for f in (outline_image_text_encoder, outline_segmenter)}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder, no services, no GPU, nothing in the caches, a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for module in (encoders, cost):  # the tests ask for the same few encoders again and again
        for name, outline in OUTLINES.items():
            monkeypatch.setattr(module, name, outline)


def doctor(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def lines(curriculum: Path, *overrides: str) -> dict[str, Check]:
    return {check.name: check for check in examine(load_curriculum(curriculum, overrides))}


def photos(root: Path) -> list[str]:
    roots = [f"data.{role}.root={root}" for role in ROLES]
    return [*roots, f"data.object_centric.root={DATA / 'imagenet-sample'}"]


# ---------------------------------------------------------------- nothing


def test_nothing_is_there() -> None:
    code, output = doctor(PAPER)
    assert code == 1
    assert "refcoco.yaml cannot run: data.referring, data.validation, data.evaluation" in output
    checks = lines(PAPER)
    assert {checks[f"data.{role}"].state for role in (*ROLES, "object_centric")} == {"missing"}
    assert "refcoco.zip" in checks["data.referring"].todo
    assert "data/refer/refcoco holds refs(unc).p" in checks["data.referring"].todo
    assert (
        "unpack train2014.zip of COCO (82,783 pictures, 13 GB; http"
        in checks["data.referring"].todo
    )
    assert "get ViT-B-16.pt, about 350 MB (" in checks["model.clip"].todo
    assert "LOC_synset_mapping.txt" in checks["data.object_centric"].todo
    assert "weights/ViT-B-16.pt is not there" in checks["model.clip"].found
    assert "SHA-256 5806e77cd80f8b59" in checks["model.clip"].todo
    assert "sam_vit_b_01ec64.pth, 375 MB" in checks["model.sam"].todo
    assert "SHA-256 ec2df62732614e57" in checks["model.sam"].todo
    assert checks["CPUs and GPUs"].state == "missing"
    assert "resources.gpus_per_worker" in checks["CPUs and GPUs"].todo


def test_what_it_will_take_is_known_before_it_is_there() -> None:
    found = lines(PAPER)["disk (store)"].found
    pictures = 16994 + 1500 + 1500 + 2836 + 7000
    row = 2 * (256 * 64 * 64 + 197 * 512 + 3 * 196 * 768)  # SAM's map, surgery tokens, taps
    assert f"{pictures:,} pictures x {row:,} B" in found
    assert f"features {pictures * row / 1e9:,.1f} GB" in found
    assert f"texts x {WORDS_OF_A_TEXT * 512 * 2:,} B" in found
    assert f"candidates x {256 * 256 // 8 + 4 * 4:,} B" in found  # a mask as bits, and its box


def test_without_a_curriculum() -> None:
    code, output = doctor()
    assert code == 0
    for name in ("memory", "CPUs and GPUs", "Ray", "MLflow", "libraries", "disk"):
        assert name in output
    assert "paper/refcoco " in output and "quickstart " in output
    assert "data.referring.root is missing" in output  # of photos.yaml


def test_a_broken_curriculum_is_told_as_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\nstages: {a: {num_epochs: 0}}")
    code, output = doctor("x.yaml")
    assert code == 2
    assert "stages.a.num_epochs" in output
    assert doctor("nowhere.yaml")[0] == 2
    assert doctor(QUICKSTART, "seed=many")[0] == 2


def test_a_broken_curriculum_among_others(tmp_path: Path) -> None:
    (tmp_path / "curricula").mkdir()
    (tmp_path / "curricula" / "a.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "curricula" / "b.yaml").write_text("# mine\nname: [")
    code, output = doctor()
    assert code == 0
    assert output.count("cannot be read") == 2


# ---------------------------------------------------------------- data


def partial(root: Path, *, pictures: int = 1) -> Path:
    """RefCOCO with one ref a split and a second in `train`; so many of its two pictures."""
    splits = ["train", "train", "val", "testA", "testB"]
    refs = [
        {
            "ref_id": i,
            "ann_id": 7,
            "image_id": 1 + (i == 1),
            "split": split,
            "sentences": [{"sent_id": i, "sent": "a thing"}],
        }
        for i, split in enumerate(splits)
    ]
    (root / "refcoco").mkdir(parents=True)
    (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    images = [{"id": i, "file_name": f"p{i}.jpg", "height": 30, "width": 40} for i in (1, 2)]
    (root / "refcoco" / "instances.json").write_text(json.dumps({"images": images}))
    (root / "images" / "train2014").mkdir(parents=True)
    for i in range(1, 1 + pictures):
        Image.new("RGB", (40, 30)).save(root / "images" / "train2014" / f"p{i}.jpg")
    return root


def test_a_partial_refcoco(tmp_path: Path) -> None:
    checks = lines(PHOTOS, *photos(partial(tmp_path / "data")))
    train, test = checks["data.referring"], checks["data.evaluation"]
    assert (train.state, test.state) == ("warning", "warning")
    assert "train 2 of 42,404 refs, 1 of 2 pictures" in train.found
    assert "quarantined" in train.todo and "train2014.zip" in train.todo
    assert "testA 1 of 1,975 refs, 1 of 1 pictures; testB 1 of 1,810 refs" in test.found
    assert "do not compare" in test.todo and "train2014.zip" not in test.todo


def test_sentences_of_refcoco_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    root = partial(tmp_path / "data", pictures=2)
    path = root / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    refs[0]["sentences"] = [{"sent_id": i, "sent": sent} for i, sent in enumerate([None, 3, "x"])]
    path.write_bytes(pickle.dumps(refs))
    checks = lines(PHOTOS, *photos(root))
    assert checks["data.referring"].state == "warning"
    told = "2 expressions will be quarantined: 1 as expression is no text: None, 1 as "
    assert told in checks["data.referring"].todo
    assert "quarantined" not in checks["data.validation"].todo


def test_pictures_that_are_there_are_not_asked_for(tmp_path: Path) -> None:
    root = partial(tmp_path / "data")
    (root / "refcoco" / "refs(unc).p").unlink()
    check = lines(PHOTOS, *photos(root))["data.referring"]
    assert check.state == "missing"
    assert "refcoco.zip" in check.todo and "train2014.zip" not in check.todo


def test_no_picture_of_refcoco(tmp_path: Path) -> None:
    root = partial(tmp_path / "data", pictures=0)
    check = lines(PHOTOS, *photos(root))["data.referring"]
    assert check.state == "missing"
    assert "train 2 of 42,404 refs, 0 of 2 pictures" in check.found
    link = "http://images.cocodataset.org/zips/train2014.zip"
    get = f"{link}; `ppt download coco_train2014`"
    told = f"unpack train2014.zip of COCO (82,783 pictures, 13 GB; {get}) into {root}/images"
    assert told in check.todo
    code, output = doctor(PHOTOS, *photos(root))
    assert code == 1
    assert "as for data.referring" in output  # the same advice once


@pytest.mark.parametrize(
    ("override", "state", "message"),
    [
        ("data.referring.split=valid", "missing", "no ref of valid (there: train, val, testA"),
        ("data.referring.dataset=refcoco+", "missing", "'refcoco+' is not in"),
        ("data.referring.split_by=umd", "missing", "split_by 'umd': no "),
    ],
)
def test_something_else_of_refcoco(tmp_path: Path, override: str, state: str, message: str) -> None:
    check = lines(PHOTOS, *photos(partial(tmp_path / "d")), override)["data.referring"]
    assert check.state == state
    assert message in check.found


@pytest.mark.parametrize(
    "broken",
    [b"", b"no pickle", pickle.dumps([1]), pickle.dumps([{"ref_id": 1}])],
)
def test_a_broken_index_is_a_line(tmp_path: Path, broken: bytes) -> None:
    root = partial(tmp_path / "data")
    (root / "refcoco" / "refs(unc).p").write_bytes(broken)
    code, output = doctor(PHOTOS, *photos(root))
    assert code == 1
    assert "data.referring" in output and "wrong" in output
    assert "libraries" in output  # the other checks are there all the same


def test_a_check_that_fails_itself_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = partial(tmp_path / "data")
    monkeypatch.setattr(data_sets, "_counts", None)  # what nobody thought of
    check = lines(PHOTOS, *photos(root))["data.referring"]
    assert check.state == "wrong"
    assert "could not be looked at: TypeError" in check.found


def test_a_local_run_needs_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, output = doctor(QUICKSTART, f"store={tmp_path}", "--local")
    assert code == 0 and "can run" in output and "RAY_ADDRESS" not in output
    assert "without Ray" in output
    code, output = doctor(QUICKSTART, "resources.num_workers=2", "--local")
    assert code == 1 and "resources.num_workers must be 1" in output


def test_a_table_without_masks_cannot_be_evaluated_on(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("picture,expression\na.png,a thing\nb.png,another\n")
    table = f"{{format: table, path: {tmp_path / 't.csv'}}}"
    checks = lines(QUICKSTART, f"data.referring={table}", f"data.evaluation={table}")
    assert checks["data.referring"].state == "warning"
    assert "1 of 2 pictures, 1 of 2 expressions" in checks["data.referring"].found
    assert checks["data.evaluation"].state == "wrong"
    assert "no column 'mask' or 'polygon'" in checks["data.evaluation"].found
    assert checks["model.clip"].state == "warning"  # the toybox knows no photographs


def own_table(folder: Path, *rows: dict[str, object] | str) -> str:
    """A JSON Lines table beside one picture, a.png."""
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
    return f"{{format: table, path: {path}}}"


def test_the_rows_of_a_table_are_looked_at(tmp_path: Path) -> None:
    whole = {"picture": "a.png", "expression": "a thing"}
    gone = [{"picture": f"{i}.png", "expression": "a thing"} for i in range(5)]
    table = own_table(tmp_path, whole, *gone, {**whole, "expression": "!"}, "{")
    check = lines(QUICKSTART, f"data.referring={table}")["data.referring"]
    assert check.state == "warning"
    assert "1 of 7 pictures, 1 of 8 expressions" in check.found
    assert f"7 will be quarantined: 5 as line 2: picture 0.png is missing from {tmp_path}" in (
        check.todo
    )
    assert "1 as line 7: expression '!' has no word, 1 as line 8 is no JSON" in check.todo
    assert "0.png, 1.png, 2.png and 2 more" in check.todo
    assert "CSV" not in check.todo
    table = own_table(tmp_path, {**whole, "expression": 5}, {**whole, "expression": ""})
    check = lines(QUICKSTART, f"data.referring={table}")["data.referring"]
    assert check.state == "wrong"
    assert "0 of 2 expressions" in check.found and "line 1: expression is no text: 5" in check.todo


def test_the_masks_of_a_table_are_looked_for(tmp_path: Path) -> None:
    row = {"picture": "a.png", "expression": "a thing"}
    rows = [{**row, "mask": f"masks/{i}.png"} for i in range(2)] + [{**row, "polygon": "[1"}]
    table = own_table(tmp_path, *rows)
    checks = lines(QUICKSTART, f"data.referring={table}", f"data.evaluation={table}")
    assert checks["data.referring"].state == "ok"
    assert checks["data.evaluation"].state == "wrong"
    assert "0 of 3 expressions with a mask" in checks["data.evaluation"].found
    assert "2 as line 1: mask masks/0.png is missing from" in checks["data.evaluation"].todo
    table = own_table(tmp_path, *rows, {**row, "polygon": [1, 1, 9, 1, 9, 9]})
    check = lines(QUICKSTART, f"data.validation={table}")["data.validation"]
    assert check.state == "warning"
    assert "1 of 4 expressions with a mask" in check.found
    assert "1 as line 3: polygon is no JSON list" in check.todo


def test_mini_imagenet_with_too_few_pictures(tmp_path: Path) -> None:
    root = tmp_path / "mini"
    (root / "images").mkdir(parents=True)
    for split in ("train", "val", "test"):
        (root / f"{split}.csv").write_text(f"filename,label\n{split}.jpg,a_cup\n")
    data = f"data.object_centric={{format: mini_imagenet, root: {root}, max_pictures: 2836}}"
    assert lines(QUICKSTART, data)["data.object_centric"].state == "missing"
    for split in ("train", "val", "test"):
        Image.new("RGB", (40, 30)).save(root / "images" / f"{split}.jpg")
    check = lines(QUICKSTART, data)["data.object_centric"]
    assert check.state == "warning"
    assert "3 of 3 pictures; max_pictures is 2836, but only 3 are there" in check.found


@pytest.mark.skipif(not (DATA / "miniref").is_dir(), reason="the shared data is not here")
def test_miniref_can_run() -> None:
    code, output = doctor(PHOTOS, *photos(DATA / "miniref"), "resources.cpus_per_worker=0.5")
    assert code == 0, output
    assert "can run" in output and "warnings" in output
    assert "train 28 of 42,404 refs, 12 of 12 pictures" in output
    assert "imagenet-sample: 250 of 250 pictures" in output


def test_the_quickstart_can_run_and_no_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have one running
    monkeypatch.setattr(ray, "init", lambda **options: started.append(options))
    code, output = doctor(QUICKSTART)
    assert code == 0
    assert "quickstart.yaml can run" in output
    assert "fingerprint" in output
    assert not started


def test_the_same_data_in_two_roles_is_stored_once() -> None:
    held_out = "{format: toybox_scenes, num_pictures: 300, seed: 40}"
    overrides = [f"data.{role}={held_out}" for role in ("validation", "evaluation")]
    curriculum = load_curriculum(QUICKSTART, overrides)
    contents = {role: check_data(role, curriculum.data)[1] for role in (*ROLES, "object_centric")}
    once = sum(contents[role].pictures for role in ("referring", "object_centric"))
    made = curriculum.synthesis.num_pictures
    assert estimate(curriculum, contents).pictures == made + once + 300


# ---------------------------------------------------------------- weights


def sam_checkpoint(path: Path, name: str = "vit_b") -> Path:
    """Full-size shapes whose every tensor is one number: a tiny file."""
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    torch.save({n: torch.zeros(()).expand(t.shape) for n, t in state.items()}, path)
    return path


def test_wrong_weights(tmp_path: Path) -> None:
    (tmp_path / "noise.pth").write_bytes(torch.randint(256, (5000,), dtype=torch.uint8).numpy())
    sam = sam_checkpoint(tmp_path / "sam.pth")
    overrides = [f"model.clip.weights={sam}", f"model.sam.weights={tmp_path / 'noise.pth'}"]
    checks = lines(PAPER, *overrides)
    assert (checks["model.clip"].state, checks["model.sam"].state) == ("wrong", "wrong")
    assert "seems to be SAM vit_b; expected CLIP ViT-B-16-quickgelu" in checks["model.clip"].found
    assert "ViT-B-16.pt" in checks["model.clip"].todo
    assert "noise.pth is no checkpoint" in checks["model.sam"].found
    code, output = doctor(PAPER, *overrides)
    assert code == 1
    assert "model.clip, model.sam" in output


def test_weights_that_fit_but_are_not_the_published_file(tmp_path: Path) -> None:
    sam = sam_checkpoint(tmp_path / "sam.pth")
    check = lines(PAPER, f"model.sam.weights={sam}")["model.sam"]
    assert check.state == "warning"
    assert "fingerprint" in check.found
    assert "is not the published sam_vit_b_01ec64.pth" in check.todo


@pytest.mark.parametrize(
    ("override", "name", "state", "message"),
    [
        ("model.clip.name=RN50", "model.clip", "wrong", "its image tower is a ResNet"),
        ("model.clip.weights=openai", "model.clip", "warning", "a tag of open_clip, not in its"),
        (
            "model.clip.weights=openai model.clip.name=ViT-B-16",
            "model.clip",
            "wrong",
            "must be 'ViT-B-16-quickgelu' for openai",
        ),
        ("model.sam.name=vit_x", "model.sam", "wrong", "must be one of toybox, vit_b"),
        ("model.sam.weights=null", "model.sam", "missing", "no weights are named"),
    ],
)
def test_other_weights(override: str, name: str, state: str, message: str) -> None:
    check = lines(PAPER, *override.split())[name]
    assert check.state == state
    assert message in check.found


def test_weights_that_are_missing_can_be_downloaded() -> None:
    check = lines(PAPER, "model.sam.name=mobile_sam")["model.sam"]
    assert check.state == "missing"
    assert "`ppt download mobile_sam`, or get mobile_sam.pt, 40.7 MB (https://" in check.todo


def test_random_weights_are_a_warning() -> None:
    for name in ("toybox", "mobile_sam"):
        overrides = (f"model.sam.name={name}", "model.sam.weights=random")
        check = lines(QUICKSTART, *overrides)["model.sam"]
        assert check.state == "warning" and "random numbers are for tests" in check.todo


def test_a_tag_is_looked_for_in_the_caches_of_open_clip(tmp_path: Path) -> None:
    """The hub's, and open_clip's own for what is not on the hub."""
    assert "without a network" in lines(PAPER, "model.clip.weights=openai")["model.clip"].todo
    repo = tmp_path / "hub" / "models--timm--vit_base_patch16_clip_224.openai"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    path = repo / "snapshots" / "abc" / "open_clip_pytorch_model.bin"
    with torch.device("meta"):
        state = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu")).state_dict()
    torch.save({n: torch.zeros(()).expand(t.shape) for n, t in state.items()}, path)
    check = lines(PAPER, "model.clip.weights=openai")["model.clip"]
    assert check.state == "ok" and f"in its cache: {path}" in check.found
    path.with_name("open_clip_model.safetensors").write_bytes(b"half of it")  # is preferred
    check = lines(PAPER, "model.clip.weights=openai")["model.clip"]
    assert check.state == "wrong" and "cut short" in check.found and "delete it" in check.todo


def test_a_tag_that_is_on_no_hub(tmp_path: Path) -> None:
    file = tmp_path / ".cache" / "clip" / "net.pt"
    tag = {"url": "https://somewhere/net.pt", "hf_hub": ""}
    assert encoders._cached(tag) is None
    file.parent.mkdir(parents=True)
    file.touch()
    assert encoders._cached(tag) == file


# ---------------------------------------------------------------- the machine


def test_too_little_disk_stops(tmp_path: Path) -> None:
    curriculum = load_curriculum(QUICKSTART)
    needed = estimate(curriculum, {})
    assert machine.check_disk(str(tmp_path), needed).state == "ok"
    huge = replace(needed, pictures=10**12)
    assert machine.check_disk(str(tmp_path), huge).state == "missing"
    remote = machine.check_disk("memory://runs", needed)
    assert remote.state == "warning" and "remote" in remote.found


def test_a_row_is_as_large_as_what_the_encoders_give() -> None:
    model = load_curriculum(QUICKSTART).model
    clip, sam = build_image_text_encoder(model.clip), build_segmenter(model.sam)
    picture = np.zeros((30, 40, 3), np.uint8)
    features = clip.encode_images(clip.preprocess(picture)[None])
    words, _ = clip.encode_words(["a red circle"])
    mask = blob((30, 40), (3, 4, 20, 21))
    labels = pa.Table.from_pylist([label("p", (30, 40), "a", [mask])], LABELS)
    target = target_table(labels, sam.low_res_size, sam.image_size)
    row = sum(tensor_bytes(field) for field in target.schema)
    given = [*features.visual_features, features.surgery_tokens]
    given += sam.encode_images(sam.preprocess(picture)[None]).values()
    per_text = 2 * min(WORDS_OF_A_TEXT, words.shape[1]) * words.shape[2]
    assert row_bytes(model) == (2 * sum(t.numel() for t in given), per_text, row)


def test_the_targets_of_every_round_are_counted() -> None:
    contents = {"referring": Content(100, 1_000, 0), "object_centric": Content(50, 50, 0)}
    none = estimate(load_curriculum(QUICKSTART), {}).candidates
    found = estimate(load_curriculum(QUICKSTART), contents).candidates
    rounds = 1 + 1 + 2  # the first labels, and those of the quickstart's three Selects
    assert found - none == CANDIDATES_OF_A_TEXT * (50 + rounds * 1_000)


def test_more_actors_take_more_memory() -> None:
    one, two = (
        memory_to_encode(load_curriculum(PAPER, [f"resources.num_actors={n}"])) for n in (1, 2)
    )
    attention = 4 * 12 * 4096**2  # of one picture in a global block of SAM ViT-B
    assert two - one > 4 * attention
    assert machine.check_memory(10**15).state == "warning"


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A port at which nothing answers; Ray is waited for half a second."""
    monkeypatch.setattr("ppt.distributed.cluster.ANSWER_WITHIN", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_services_that_do_not_answer(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        places = [closed_port, mute.getsockname()[1]]
        for address in (*(f"127.0.0.1:{port}" for port in places), "[broken", "nonsense"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            check = machine.check_ray()
            assert check.state == "missing"
            assert f"no cluster at RAY_ADDRESS={address} (" in check.found
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    assert machine.check_mlflow(None).state == "missing"


def test_a_cluster_that_does_not_answer_ends_a_run_in_a_line(
    closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray.init` would wait for minutes, and then end the process."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    command = ["prepare", str(QUICKSTART), *SMALL, f"store={tmp_path}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: no cluster at RAY_ADDRESS=127.0.0.1:{closed_port} (")
    assert line.endswith("start it, or unset RAY_ADDRESS to run on this machine")


def test_an_mlflow_server_has_to_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers(BaseHTTPRequestHandler):
        """An MLflow server without experiments, or with `known` false a server of another kind."""

        known = True

        def do_POST(self) -> None:
            found = self.known and self.path.endswith("search")
            self.send_response(200 if found else 404)
            self.end_headers()
            missing = b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}' if self.known else b"what?"
            self.wfile.write(b'{"experiments": []}' if found else missing)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        assert machine.check_mlflow(None).state == "ok"
        Answers.known = False
        assert machine.check_mlflow(None).state == "wrong"
        server.shutdown()


def test_local_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS=local starts a Ray here, so a GPU that is not here stops the run."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    check = lines(QUICKSTART, "resources.gpus_per_worker=1")["CPUs and GPUs"]
    assert check.stops and "no GPU; asked for: " in check.found
    assert machine.check_ray().found == "on this machine (RAY_ADDRESS names no cluster)"


def test_a_tracking_address_that_train_would_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    check = machine.check_mlflow(None)
    assert check.state == "wrong"
    assert "MLFLOW_TRACKING_URI=file:///tmp/mlruns cannot be used" in check.found


def test_where_things_are_published_is_linked() -> None:
    checks = lines(PAPER)
    for name, link in (
        ("data.referring", "https://github.com/lichengunc/refer"),
        ("data.referring", "http://images.cocodataset.org/zips/train2014.zip"),
        ("data.object_centric", "https://www.kaggle.com/c/imagenet-object-localization-challenge"),
        ("model.clip", "/ViT-B-16.pt"),
        ("model.sam", "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth"),
    ):
        assert link in checks[name].todo


def test_too_many_cpus() -> None:
    asked = ("resources.num_workers=2", "resources.cpus_per_worker=4000")
    check = lines(QUICKSTART, *asked)["CPUs and GPUs"]
    assert check.stops
    assert "asked for: 8000 CPU" in check.found


def test_cpus_are_counted_as_ray_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.utils._get_docker_cpus", lambda: 3.0)  # a container's
    two = "resources.num_workers=2"
    check = lines(QUICKSTART, two, "resources.cpus_per_worker=1.4")["CPUs and GPUs"]
    assert check.found.startswith("3 CPUs") and not check.stops
    assert lines(QUICKSTART, two, "resources.cpus_per_worker=1.6")["CPUs and GPUs"].stops


def test_other_versions_than_those_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.check_libraries().state in ("ok", "warning")
    tested = dict.fromkeys(machine._LIBRARIES, "0.0.1")
    monkeypatch.setattr(machine, "_tested", lambda: tested)
    check = machine.check_libraries()
    assert check.state == "warning"
    assert "tested with ray 0.0.1, torch 0.0.1" in check.todo


def test_the_machine_is_looked_at_with_nothing_else() -> None:
    assert not any(check.stops for check in examine_machine())


def test_curricula_are_listed_once_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone, which holds the curricula of the package and perhaps others."""
    here = shutil.copytree(CURRICULA, tmp_path / "curricula")
    (here / "mine.yaml").write_text("# My own.\nbase: quickstart\n")
    (here / "quickstart.yaml").write_text("# A changed one.\nbase: photos\n")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0, result.output
    listed = re.findall(r"^│(\S+) +│.*│$", result.output.partition("┃curriculum")[2], re.M)
    known = {str(path.relative_to(CURRICULA))[:-5] for path in CURRICULA.rglob("*.yaml")}
    wanted = {name for name in known if not name.startswith("sweeps/")}
    assert sorted(listed) == sorted([*wanted, "curricula/mine.yaml", "curricula/quickstart.yaml"])
    assert [path.name for path in tmp_path.iterdir()] == ["curricula"]
