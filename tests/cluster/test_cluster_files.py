"""The files of cluster/: valid as they stand, and of no use until their three places are edited."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from ppt.config import load_curriculum

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = ["aws.yaml", "gcp.yaml", "on-premise.yaml"]
KUBERAY = ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "kuberay/rayservice.yaml"]
EDITED = [*RAY_UP, *KUBERAY, "slurm.sh"]


def _load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


# ---------------------------------------------------------------- three places


@pytest.mark.parametrize("name", EDITED)
def test_three_places_are_marked(name: str) -> None:
    lines = (CLUSTER / name).read_text().splitlines()
    marked = [line for line in lines if "EDIT_ME" in line]
    assert [re.findall(r"# EDIT (\d of \d):", line) for line in marked] == [
        ["1 of 3"],
        ["2 of 3"],
        ["3 of 3"],
    ]
    assert all(line.count("EDIT_ME") == 1 for line in marked)
    assert not any("EDIT" in line.partition("#")[0].replace("EDIT_ME_", "") for line in lines)


@pytest.mark.parametrize("name", [*RAY_UP, *KUBERAY])
def test_a_mark_is_a_value_and_not_a_comment(name: str) -> None:
    assert len(set(re.findall(r"EDIT_ME_\w+", yaml.safe_dump(_load(name))))) == 3


# ---------------------------------------------------------------- ray up


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_takes_the_file(name: str) -> None:
    validate_config(prepare_config(_load(name)))


@pytest.mark.parametrize("name", RAY_UP)
def test_rays_schema_would_notice(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_wrkers"):
        validate_config(prepare_config({**_load(name), "max_wrkers": 3}))


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_gpus_train_cpus_read_and_the_head_rests(name: str) -> None:
    config = _load(name)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0}
    assert types["gpu"]["resources"]["GPU"] > 0
    assert types["reader"]["resources"]["CPU"] > 0 and "GPU" not in types["reader"]["resources"]


@pytest.mark.parametrize("name", RAY_UP)
def test_a_cluster_asks_for_its_token_and_shows_its_dashboard_to_itself_only(name: str) -> None:
    config = _load(name)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    start = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in start


# ---------------------------------------------------------------- KubeRay


def _strict(schema: Any) -> Any:
    """The schema with every unknown field an error, as `kubectl apply` with strict validation."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def _schema(kind: str) -> dict[str, Any]:
    path = Path(__file__).parent / f"kuberay/{kind}.schema.yaml"
    return _strict(yaml.safe_load(path.read_text()))


def _kuberay_errors(resource: dict[str, Any]) -> list[str]:
    job, service = _schema("rayjob"), _schema("rayservice")
    cluster = job["properties"]["rayClusterSpec"]
    service["properties"]["rayClusterConfig"] = cluster
    schema = {"RayJob": job, "RayCluster": cluster, "RayService": service}[resource["kind"]]
    found = jsonschema.Draft202012Validator(schema).iter_errors(resource["spec"])
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_the_file(name: str) -> None:
    resource = _load(name)
    assert resource["apiVersion"] == "ray.io/v1"
    assert _kuberay_errors(resource) == []


def _cluster_of(name: str) -> dict[str, Any]:
    """The part of a file's spec that describes the Ray cluster."""
    spec = _load(name)["spec"]
    return spec.get("rayClusterSpec", spec.get("rayClusterConfig", spec))


def test_kuberays_schema_would_notice() -> None:
    cluster = _load("kuberay/raycluster.yaml")
    for key, value in (
        ("rayVersion", 2.6),
        ("authOptions", {"mode": "password"}),
        ("headGroupSpec", {**cluster["spec"]["headGroupSpec"], "rayStartParams": {"num-cpus": 0}}),
        ("workerGroups", []),
    ):
        wrong = copy.deepcopy(cluster)
        wrong["spec"][key] = value
        assert len(_kuberay_errors(wrong)) == 1, key
    service = _load("kuberay/rayservice.yaml")
    for key, value in (("serveConfig", ""), ("serveConfigV2", {}), ("rayClusterConfig", {})):
        assert _kuberay_errors({**service, "spec": {**service["spec"], key: value}}), key


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_gpus_a_shared_volume_and_a_head_without_work(name: str) -> None:
    spec = _cluster_of(name)
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["authOptions"] == {"mode": "token"}
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    limits = groups["gpu"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 1
    for group in (spec["headGroupSpec"], *groups.values()):
        pod = group["template"]["spec"]
        mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]} == {"shared"}


def test_what_a_rayjob_asks_for_is_there_from_the_start() -> None:
    job = _load("kuberay/rayjob.yaml")["spec"]
    _, command, path, *overrides = shlex.split(job["entrypoint"])
    curriculum = load_curriculum(ROOT / path.removeprefix("/opt/ppt/"), overrides)
    resources = curriculum.resources
    group = job["rayClusterSpec"]["workerGroupSpecs"][0]
    assert command == "train"
    assert resources.most_workers * resources.gpus_per_worker <= group["minReplicas"]
    assert resources.num_actors * resources.gpus_per_actor <= group["minReplicas"]


def test_ray_serve_takes_what_a_rayservice_serves_and_has_room_for_it() -> None:
    pytest.importorskip("grpc_reflection", reason="needs the extra serve")
    from ray.serve.schema import ServeDeploySchema

    from ppt.distributed.serve import Service

    spec = _load("kuberay/rayservice.yaml")["spec"]
    [served] = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications
    module, _, builder = served.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), builder))
    service = Service.model_validate(served.args)
    [group] = spec["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert service.num_replicas <= group["minReplicas"]
    assert service.gpus_per_replica <= limits["nvidia.com/gpu"]
    assert service.cpus_per_replica <= float(limits["cpu"])


# ---------------------------------------------------------------- Slurm and Docker


def test_slurm_script_is_bash_and_uses_what_ray_has() -> None:
    path = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", path], check=True)
    from ray.scripts.symmetric_run import symmetric_run

    text = path.read_text().replace("\\\n", " ")
    options = re.search(r"ray symmetric-run (.*?) -- ", text)
    assert options
    words = [word for word in shlex.split(options[1]) if word.startswith("--")]
    known = {option for p in symmetric_run.params for option in p.opts}
    from ray.scripts.scripts import start

    known |= {option for p in start.params for option in p.opts}
    assert {word.partition("=")[0] for word in words} <= known


def test_slurms_overrides_are_keys_of_the_curriculum() -> None:
    text = (CLUSTER / "slurm.sh").read_text().replace("\\\n", " ")
    command = next(line for line in text.splitlines() if " ppt train " in line)
    words = shlex.split(command.partition(" ppt train ")[2].replace("$gpus", "4"))
    assert words[0].endswith("curricula/photos.yaml")
    curriculum = load_curriculum(ROOT / "curricula" / "photos.yaml", words[1:])
    assert curriculum.resources.gpus_per_worker == 1


def test_what_the_image_copies_is_there_and_what_it_installs_is_pinned() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied and all((ROOT / word).exists() for word in copied)
    assert {"ppt", "jobs", "curricula", "constraints.txt", "pyproject.toml"} <= set(copied)
    installs = [line for line in lines if "pip install" in line]
    assert all("--constraint constraints.txt" in line for line in installs) and installs
    assert re.search(r"^FROM python:3\.11", "\n".join(lines), re.MULTILINE)


@pytest.mark.parametrize("name", KUBERAY)
def test_rays_version_is_the_pinned_one(name: str) -> None:
    version = _cluster_of(name)["rayVersion"]
    assert f"ray=={version}" in (ROOT / "constraints.txt").read_text().splitlines()
