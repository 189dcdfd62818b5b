"""deploy/systemd: a unit that systemd takes, confined, and served by settings that exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from deployed import CONFIG, DEPLOY, STATE, config_of

SYSTEMD = DEPLOY / "systemd"
UNIT = (SYSTEMD / "adapterd.service").read_text()
DROP_IN = SYSTEMD / "adapterd.service.d"
MAX_EXPOSURE = "30"  # of systemd's hundred
HARDENED = (
    *("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectClock"),
    *("ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"),
    *("LockPersonality", "RestrictRealtime", "RestrictSUIDSGID", "RemoveIPC"),
)

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def value(key: str) -> str:
    [found] = re.findall(rf"^{key}=(.*)$", UNIT, re.M)
    return str(found)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit and its drop-in, with a command that exists here."""
    shutil.copytree(DROP_IN, tmp_path / DROP_IN.name)
    (tmp_path / "adapterd.service").write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT, flags=re.M))
    return tmp_path / "adapterd.service"


def systemd(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


@analyze
def test_systemd_takes_the_unit(unit: Path) -> None:
    done = systemd("verify", "--man=no", unit)
    assert done.returncode == 0 and "adapterd" not in done.stderr, done.stderr  # of other units it may say more


@analyze
@pytest.mark.parametrize("line", ["ProtectSytem=strict", "SystemCallFilter=@no-such-set"])
def test_systemd_would_tell_of_a_line_it_does_not_know(unit: Path, line: str) -> None:
    unit.write_text(unit.read_text().replace("[Service]", f"[Service]\n{line}"))
    assert "adapterd" in systemd("verify", "--man=no", unit).stderr


@analyze
def test_the_unit_is_confined_by_systemds_own_measure(unit: Path) -> None:
    done = systemd("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_unit_gives_up_what_it_does_not_need() -> None:
    assert {key: value(key) for key in HARDENED} == dict.fromkeys(HARDENED, "yes")
    assert value("ProtectSystem") == "strict" and value("CapabilityBoundingSet") == ""


def test_the_process_that_opens_pickles_can_confine_itself() -> None:
    assert value("RestrictNamespaces").split() == ["user", "net"]  # CLONE_NEWUSER and CLONE_NEWNET
    assert value("SystemCallFilter") == "@system-service"
    assert value("OOMPolicy") == "continue"


@analyze
def test_system_calls_of_the_process_that_opens_pickles_are_let_through() -> None:
    allowed = calls("@system-service")
    assert {"unshare", "prctl", "prlimit64", "pipe2", "memfd_create", "mprotect", "execve"} <= allowed
    assert "mount" not in allowed


def calls(name: str) -> set[str]:
    """Of one of systemd's sets, with the sets in it."""
    words = [line.strip() for line in systemd("syscall-filter", "--no-pager", name).stdout.splitlines()]
    names = [word for word in words if word and not word.startswith("#") and word != name]
    return {call for word in names for call in (calls(word) if word.startswith("@") else {word})}


def test_memory_may_be_written_and_run() -> None:
    assert "MemoryDenyWriteExecute=" not in UNIT  # oneDNN compiles for the processor; on GPUs so does Triton


def test_the_unit_serves_with_settings_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    command, *arguments = shlex.split(value("ExecStart"))
    assert Path(command).name == "adapterd"
    config = config_of(arguments, monkeypatch, {CONFIG: SYSTEMD / "adapterd.toml"})
    assert f"/var/lib/{value('StateDirectory')}" == STATE and f"HOME={STATE}" in value("Environment").split()
    assert Path(config.cache.disk_path).is_relative_to(STATE)
    folder = f"/etc/{value('ConfigurationDirectory')}"
    assert Path(config.api.tenants).parent == Path(CONFIG).parent == Path(folder)
    assert not config.api.allow_anonymous


def test_the_unit_ends_by_a_drain_and_starts_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    api = config_of(["serve", "--config", CONFIG], monkeypatch, {CONFIG: SYSTEMD / "adapterd.toml"}).api
    assert float(value("TimeoutStopSec")) >= api.lame_duck_s + api.drain_timeout_s + 10
    assert (value("KillSignal"), value("KillMode"), value("Restart")) == ("SIGTERM", "mixed", "on-failure")
    # so many starts fit into the interval, or the limit would never be met
    assert float(value("RestartSec")) * int(value("StartLimitBurst")) < float(value("StartLimitIntervalSec"))


def test_the_drop_in_gives_the_gpus_devices_and_no_others() -> None:
    lines = (DROP_IN / "gpu.conf").read_text().splitlines()
    assert "DevicePolicy=closed" in lines
    assert [line for line in lines if line.startswith("DeviceAllow=")] == ["DeviceAllow=char-nvidia* rw"]
