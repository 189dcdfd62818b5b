"""deploy/kubernetes: valid, restricted, and served by settings that exist."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from deployed import (
    CONFIG,
    DEPLOY,
    HTTP_PORT,
    PORT,
    STATE,
    check_serves_everyone,
    config_of,
    memory_of,
    num_bytes,
    read,
    read_all,
)

from server.backoff import MAX_S
from server.config import ServerConfig
from server.tenants import read_tenants

KUBERNETES = DEPLOY / "kubernetes"
BASE, GPU, CLUSTER = KUBERNETES / "base", KUBERNETES / "overlays/gpu", KUBERNETES / "overlays/cluster"
VERSIONS = ("1.30", "1.37")  # the oldest that the documents name, and a new one
TOML = BASE / "adapterd.toml"
LABELS = {"app.kubernetes.io/name": "adapterd"}


def merged(value: Any, patch: Any) -> Any:
    """A strategic merge, as far as the overlays need one: lists of named things go by name, null takes away."""
    if isinstance(value, dict) and isinstance(patch, dict):
        both = value | {key: merged(value.get(key), part) for key, part in patch.items()}
        return {key: part for key, part in both.items() if part is not None}
    if isinstance(value, list) and all(isinstance(part, dict) and "name" in part for part in patch):
        named = {part["name"]: part for part in value}
        both = merged(named, {part["name"]: part for part in patch})
        return sorted(both.values(), key=lambda part: part["name"] in named)  # what is new comes first
    return copy.deepcopy(patch)


def manifests(folder: Path) -> list[Any]:
    """What kustomize makes of a folder; names of ConfigMaps have no hash."""
    kustomization = read(folder / "kustomization.yaml")
    found: list[Any] = []
    for resource in kustomization.get("resources", []):
        path = (folder / resource).resolve()
        found += manifests(path) if path.is_dir() else read_all(path)
    for item in found:
        if "namespace" in kustomization and item["kind"] != "Namespace":
            item["metadata"]["namespace"] = kustomization["namespace"]
    for generated in kustomization.get("configMapGenerator", []):
        data = {name: (folder / name).read_text() for name in generated["files"]}
        metadata = {"name": generated["name"], "namespace": kustomization["namespace"]}
        found.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    for entry in kustomization.get("patches", []):
        patch = read(folder / entry["path"])
        keys = [(item["kind"], item["metadata"]["name"], item["metadata"].get("namespace")) for item in found]
        at = keys.index((patch["kind"], patch["metadata"]["name"], patch["metadata"]["namespace"]))
        found[at] = merged(found[at], patch)
    for image in kustomization.get("images", []):
        for container in [c for item in found if item["kind"] == "StatefulSet" for c in pod_of(item)["containers"]]:
            if container["image"].partition(":")[0] == image["name"]:
                container["image"] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    return found


def pod_of(workload: Any) -> Any:
    return workload["spec"]["template"]["spec"]


FOLDERS = {"cpu": BASE, "gpu": GPU, "cluster": CLUSTER}
MANIFESTS = {name: manifests(folder) for name, folder in FOLDERS.items()}


def one(kind: str, variant: str = "cpu") -> Any:
    [found] = [item for item in MANIFESTS[variant] if item["kind"] == kind]
    return found


def container_of(variant: str) -> Any:
    [container] = pod_of(one("StatefulSet", variant))["containers"]
    return container


def config(variant: str, monkeypatch: pytest.MonkeyPatch) -> ServerConfig:
    arguments = [word.replace("$(POD_IP)", "10.0.0.7") for word in container_of(variant)["args"]]
    return config_of(arguments, monkeypatch, {CONFIG: TOML})


ALL = [(variant, item) for variant, items in MANIFESTS.items() for item in items]
ALL.append(("secret", read(KUBERNETES / "secret.example.yaml")))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("variant", "item"), ALL, ids=lambda value: value if isinstance(value, str) else value["kind"])
def test_each_manifest_is_what_its_schema_says(variant: str, item: Any, version: str) -> None:
    kubernetes_validate.validate(item, version, strict=True)


@pytest.mark.parametrize(("place", "key"), [("securityContext", "readOnlyRootFilesytem"), ("startupProbe", "grcp")])
def test_the_schemas_refuse_a_misspelt_key(place: str, key: str) -> None:
    item = copy.deepcopy(one("StatefulSet"))
    pod_of(item)["containers"][0][place][key] = True
    with pytest.raises(kubernetes_validate.ValidationError, match=key):
        kubernetes_validate.validate(item, VERSIONS[-1], strict=True)


@pytest.mark.parametrize(("variant", "folder"), [("cpu", KUBERNETES), ("gpu", GPU), ("cluster", CLUSTER)])
def test_kubectl_makes_the_same_of_the_folders(variant: str, folder: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    plain, num_hashed = re.subn(r"(adapterd(?:-envoy)?)-[a-z0-9]{10}$", r"\1", done.stdout, flags=re.M)
    assert num_hashed, "a change of the settings would be no rollout"
    built = yaml.safe_load_all(plain)
    assert keyed(built) == keyed(MANIFESTS[variant])


def keyed(items: Iterable[Any]) -> dict[tuple[str, str], Any]:
    return {(item["kind"], item["metadata"]["name"]): item for item in items}


@pytest.mark.parametrize("variant", FOLDERS)
def test_pods_are_of_the_restricted_profile(variant: str) -> None:
    pod, container = pod_of(one("StatefulSet", variant)), container_of(variant)
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True and context["runAsUser"] == context["fsGroup"] == 10001
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & pod.keys()
    kinds = {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
    assert all(volume.keys() - {"name"} <= kinds for volume in pod["volumes"])
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert one("Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_pods_have_no_token_of_the_cluster() -> None:
    account, pod = one("ServiceAccount"), pod_of(one("StatefulSet"))
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False and pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("variant", FOLDERS)
def test_pods_serve_with_settings_that_exist(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    served = config(variant, monkeypatch)
    check_serves_everyone(served)
    assert served.model.device == ("cuda" if variant == "gpu" else "auto")
    places = {mount["mountPath"]: mount["name"] for mount in container_of(variant)["volumeMounts"]}
    assert places[CONFIG] == "config" and places[STATE] == "state" and places["/tmp"] == "tmp"
    assert places[str(Path(served.api.tenants).parent)] == "tenants"
    [claim] = one("StatefulSet", variant)["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "state"
    assert served.cache.disk_bytes <= 0.9 * num_bytes(claim["spec"]["resources"]["requests"]["storage"])


@pytest.mark.parametrize("variant", FOLDERS)
def test_pods_have_the_cores_memory_and_device_that_their_settings_take(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, resources = config(variant, monkeypatch), container_of(variant)["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) == served.model.num_threads
    assert memory_of(served) + (2 << 30) <= num_bytes(resources["limits"]["memory"])
    assert resources["limits"].get("nvidia.com/gpu") == ("1" if variant == "gpu" else None)
    assert container_of(variant)["image"].endswith("-cuda") == (variant == "gpu")
    [tmp] = [volume["emptyDir"] for volume in pod_of(one("StatefulSet", variant))["volumes"] if "emptyDir" in volume]
    assert 2 * served.cache.max_adapter_bytes * served.cache.max_concurrent_loads <= num_bytes(tmp["sizeLimit"])


def test_a_pod_that_stops_has_time_for_what_it_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    api, pod = config("cpu", monkeypatch).api, pod_of(one("StatefulSet"))
    assert pod["terminationGracePeriodSeconds"] >= api.lame_duck_s + api.drain_timeout_s + 10
    assert api.lame_duck_s >= 5  # what a preStop would have to wait for
    assert "lifecycle" not in container_of("cpu")


def test_probes_ask_for_health_and_outlast_a_device_fault() -> None:
    container = container_of("cpu")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": PORT}
    live = container["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= 2 * MAX_S  # of what the server waits, and a start
    start = container["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 300


def test_services_budget_and_policy_select_the_pods() -> None:
    workload, budget, policy = one("StatefulSet"), one("PodDisruptionBudget"), one("NetworkPolicy")
    services = {item["metadata"]["name"]: item["spec"] for item in MANIFESTS["cpu"] if item["kind"] == "Service"}
    assert workload["spec"]["template"]["metadata"]["labels"] == LABELS
    for selector in (workload["spec"]["selector"], budget["spec"]["selector"], policy["spec"]["podSelector"]):
        assert selector == {"matchLabels": LABELS}
    assert all(service["selector"] == LABELS for service in services.values())
    assert services[workload["spec"]["serviceName"]]["clusterIP"] == "None"
    assert "clusterIP" not in services["adapterd"]
    assert budget["spec"]["maxUnavailable"] < workload["spec"]["replicas"]
    ports = {port["name"]: port["containerPort"] for port in container_of("cpu")["ports"]}
    assert ports == {"grpc": PORT, "http": HTTP_PORT}
    assert {port["targetPort"] for service in services.values() for port in service["ports"]} <= ports.keys()


def test_the_metrics_are_for_whoever_scrapes_and_nothing_goes_out() -> None:
    spec = one("NetworkPolicy")["spec"]
    callers, scrapers = spec["ingress"]
    assert [port["port"] for port in callers["ports"]] == ["grpc"]
    assert callers["from"][0]["podSelector"]["matchLabels"] == {"adapterd-client": "true"}
    assert [port["port"] for port in scrapers["ports"]] == ["http"] and "podSelector" not in scrapers["from"][0]
    assert spec["policyTypes"] == ["Ingress", "Egress"] and spec["egress"] == []


def test_the_example_secret_is_the_example_of_tenants_and_is_not_applied(tmp_path: Path) -> None:
    secret = read(KUBERNETES / "secret.example.yaml")
    (tmp_path / "tenants.toml").write_text(secret["stringData"]["tenants.toml"])
    assert read_tenants(tmp_path / "tenants.toml") == read_tenants(DEPLOY / "tenants.example.toml")
    assert all(item["kind"] != "Secret" for items in MANIFESTS.values() for item in items)
    [named] = [volume["secret"] for volume in pod_of(one("StatefulSet"))["volumes"] if "secret" in volume]
    assert named["secretName"] == secret["metadata"]["name"]
    assert secret["metadata"]["namespace"] == one("StatefulSet")["metadata"]["namespace"]
