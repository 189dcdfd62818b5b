"""deploy/compose.yaml: valid, confined, and served by settings that exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deployed import CONFIG, DEPLOY, STATE, check_serves_everyone, config_of, memory_of, num_bytes, read, seconds, tool

COMPOSE = DEPLOY / "compose.yaml"
GPU = DEPLOY / "compose.gpu.yaml"
ALL = read(COMPOSE)
SERVICES = ALL["services"]
ADAPTERD = SERVICES["adapterd"]
TOML = DEPLOY / "adapterd.toml"


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """target -> source"""
    return {volume["target"]: volume["source"] for volume in service.get("volumes", [])}


@pytest.mark.parametrize("path", [COMPOSE, GPU], ids=lambda path: path.name)
def test_it_is_what_the_specification_of_compose_says(path: Path, tmp_path: Path) -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert done.returncode == 0, done.stdout


def test_the_specification_refuses_a_misspelt_key(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace("mem_limit:", "memory_limit:"))
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml")
    assert done.returncode == 1 and "memory_limit" in done.stdout


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
    assert int(service["user"].split(":")[0]) > 0
    assert num_bytes(service["mem_limit"]) > 0
    assert service["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(volume.get("read_only") for volume in service["volumes"] if volume["type"] == "bind")
    assert service["image"].partition(":")[2] not in ("", "latest")


@pytest.mark.parametrize("overlay", [{}, read(GPU)["services"]["adapterd"]], ids=["cpu", "gpu"])
def test_the_server_is_started_with_settings_that_exist(
    overlay: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of((ADAPTERD | overlay)["command"], monkeypatch, {CONFIG: TOML})
    check_serves_everyone(config)
    assert config.model.device == ("cuda" if overlay else "auto")
    targets = mounts(ADAPTERD)
    assert targets[CONFIG] == "./adapterd.toml" and ALL["volumes"][targets[STATE]] == {}
    # a folder: a single file that is replaced would stay the old one in the container
    assert targets[str(Path(config.api.tenants).parent)] == "./secrets/tenants"


def test_the_server_has_room_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(ADAPTERD["command"], monkeypatch, {CONFIG: TOML})
    [tmp] = ADAPTERD["tmpfs"]
    tmp_bytes = num_bytes(tmp.partition("size=")[2].partition(",")[0])
    assert 2 * config.cache.max_adapter_bytes * config.cache.max_concurrent_loads <= tmp_bytes
    assert memory_of(config) + tmp_bytes + (1 << 30) <= num_bytes(ADAPTERD["mem_limit"])
    assert seconds(ADAPTERD["stop_grace_period"]) >= config.api.lame_duck_s + config.api.drain_timeout_s + 10


def test_everything_that_is_mounted_has_a_place_and_a_source() -> None:
    sources = [volume["source"] for service in SERVICES.values() for volume in service["volumes"]]
    secrets = [secret["file"] for secret in ALL["secrets"].values()]
    named = [source for source in sources if not source.startswith("./")]
    assert sorted(named) == sorted(ALL["volumes"])
    for source in [*sources, *secrets]:
        elsewhere = ("./secrets/", "./prometheus/", "./grafana/")
        assert source in named or source.startswith(elsewhere) or (DEPLOY / source).exists(), source


def test_prometheus_and_grafana_find_what_they_are_given() -> None:
    prometheus, grafana = DEPLOY / "prometheus/prometheus.yml", DEPLOY / "grafana/provisioning"
    if not (prometheus.exists() and grafana.exists()):
        pytest.skip("no dashboards and rules are here")
    [job] = read(prometheus)["scrape_configs"]
    [secret] = SERVICES["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == secret["target"]
    assert job["static_configs"][0]["targets"] == ["adapterd:9090"]
    [provider] = read(grafana / "dashboards/adapterd.yaml")["providers"]
    assert mounts(SERVICES["grafana"])[provider["options"]["path"]] == "./grafana/dashboards"
    [source] = read(grafana / "datasources/prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
