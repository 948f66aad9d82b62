"""The example manifest for KubeRay, as far as it goes without Kubernetes: its fields, its sums, and its command line."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.engines.tensorrt_llm.conftest import STAND_IN
from tests.multi_node.conftest import EXAMPLES, Cluster

SCHEMA = json.loads((Path(__file__).parent / "rayjob.schema.json").read_text())
GPU = "nvidia.com/gpu"


@pytest.fixture
def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((EXAMPLES / "multi-node.rayjob.yaml").read_text())
    # Both groups have one pod template in the file, and two here.
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def problems(manifest: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(manifest)]


def groups(manifest: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """Return how many pods each group has, and their container."""
    cluster = manifest["spec"]["rayClusterSpec"]
    head = [(1, cluster["headGroupSpec"]["template"]["spec"]["containers"][0])]
    return head + [
        (group["replicas"], group["template"]["spec"]["containers"][0]) for group in cluster["workerGroupSpecs"]
    ]


def test_every_field_is_one_that_kuberay_has(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


def misspelled(manifest: dict[str, Any]) -> None:
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 1


def quoted(manifest: dict[str, Any]) -> None:
    manifest["spec"]["backoffLimit"] = "0"


def unquoted(manifest: dict[str, Any]) -> None:
    groups(manifest)[0][1]["env"][0]["value"] = 1


def without_template(manifest: dict[str, Any]) -> None:
    del manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]


@pytest.mark.parametrize("spoil", [misspelled, quoted, unquoted, without_template])
def test_a_wrong_field_is_found(manifest: dict[str, Any], spoil: Any) -> None:
    spoil(manifest)
    assert len(problems(manifest)) == 1


def test_nodes_are_alike_and_stay_as_many(manifest: dict[str, Any]) -> None:
    """TensorRT-LLM takes all nodes for alike, and its ranks cannot move to a cluster that grew."""
    cluster = manifest["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert cluster["headGroupSpec"]["template"] == workers["template"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"]
    for _, container in groups(manifest):
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]


def test_what_is_mounted_is_there(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    paths = [word.partition("=")[2] for word in shlex.split(manifest["spec"]["entrypoint"]) if "=/" in word]
    assert paths
    assert all(path.startswith(("/project/", "/models/")) for path in paths)


def test_its_command_line_measures_an_engine_of_all_its_gpus(cluster: Cluster, manifest: dict[str, Any]) -> None:
    """Run for real: pytest with these options, on a stand-in of Ray with the nodes of the manifest."""
    here = str(cluster.path)
    entry = manifest["spec"]["entrypoint"].replace("/project", here).replace("/models", f"{here}/models")
    nodes = ",".join(
        f"B200:{item['resources']['limits'][GPU]}" for count, item in groups(manifest) for _ in range(count)
    )
    paths = (STAND_IN, STAND_IN / "light", STAND_IN / "ray_stand_in")
    done = cluster.run(*shlex.split(entry), RAY_STAND_IN=nodes, PYTHONPATH=os.pathsep.join(map(str, paths)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    (record,) = json.loads((cluster.path / "results" / "results.json").read_text())["records"]
    engine = record["result"]["engine"]
    total = sum(count * container["resources"]["limits"][GPU] for count, container in groups(manifest))
    assert engine["options"] | {"orchestrator": "ray", "tp": 8, "pp": 2} == engine["options"]
    assert engine["hardware"] == {"name": "NVIDIA B200", "count": total, "kind": "gpu", "nodes": 2}
