"""The Dockerfile: linted, its images as they are started, and the check that runs its steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from deployed import HTTP_PORT, PORT, ROOT, STATE, config_of, tool

from deploy.check_dockerfile import build
from deploy.check_dockerfile.build import Build, Image, check_libraries
from deploy.check_dockerfile.dockerfile import Failed, order, parse, stages

DOCKERFILE = ROOT / "Dockerfile"
TARGETS = ("cpu", "cuda")


def image_of(target: str) -> Image:
    """What a target is started with: the last word of its stages, from the base image on."""
    found = stages(parse(DOCKERFILE.read_text()))
    started = Build(Path("/nowhere"), DOCKERFILE.read_text(), {})
    started._image = Image(env={"PATH": ""})
    for step in [step for name in order(target, found) if name != "build" for step in found[name][1]]:
        if step.name not in ("COPY", "RUN", "ARG"):
            started._step(step)
    return started._image


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    done = tool("hadolint", "--no-color", DOCKERFILE)
    assert done.returncode == 0, done.stdout


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text() + "USER root\n")
    done = tool("hadolint", "--no-color", tmp_path / "Dockerfile")
    assert done.returncode == 1 and "DL3002" in done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_serves_by_its_own_command(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = image_of(target)
    assert image.entrypoint == ["adapterd"]
    config = config_of(image.command, monkeypatch)
    assert [config.api.port, config.api.http_port] == image.ports == [PORT, HTTP_PORT]
    assert [str(path) for path in config.cache.adapters] == ["/adapters"]
    assert config.model.device == ("cuda" if target == "cuda" else "auto")
    assert image.health == ["adapterd", "health"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_ends_as_a_user_without_privileges_whose_home_is_a_volume(target: str) -> None:
    image = image_of(target)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user)
    assert image.volumes == [STATE]
    assert image.env["HOME"] == f"/nowhere/root{STATE}"
    assert f"chown {image.user} {STATE}" in DOCKERFILE.read_text()


def test_the_one_liner_is_published_to_this_machine_only() -> None:
    [line] = re.findall(r"^# docker run (.+)$", DOCKERFILE.read_text(), re.M)
    assert "--read-only --tmpfs /tmp " in line
    assert re.findall(r"-p (\S+)", line) == [f"127.0.0.1:{PORT}:{PORT}"]


def test_the_check_knows_stages_variables_and_continued_lines() -> None:
    one = "ARG V=3\nFROM a:$V AS one\n# no step\nRUN x && \\\n    y\n"
    found = stages(parse(one + "FROM b AS two\nFROM one AS three\nCOPY --from=two /x /y\n"))
    assert found["one"][1][0].text == "x && y" and found["one"][1][0].line == 4
    assert order("three", found) == ["one", "two", "three"]
    with pytest.raises(Failed, match="no target 'four'"):
        order("four", found)


def test_the_check_leads_every_path_into_its_root(tmp_path: Path) -> None:
    inside = Build(tmp_path, "", {}).inside
    assert inside("rm -rf /var/lib/x /opt/y") == f"rm -rf {tmp_path}/root/var/lib/x {tmp_path}/root/opt/y"
    assert inside("a=/b:$PATH >/dev/null https://host.example/x ./y") == (
        f"a={tmp_path}/root/b:$PATH >/dev/null https://host.example/x ./y"
    )


@pytest.mark.parametrize(
    ("dockerfile", "reason"),
    [
        ("RUN exit 3", "exit code 3"),
        ("COPY tests tests", "keeps tests out"),
        ("ADD x y", "ADD x y is not known"),
        ("STOPSIGNAL SIGKILL", "SIGKILL is not known"),
    ],
)
def test_the_check_fails_where_a_build_would(
    dockerfile: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_put_python", lambda local, base: local.mkdir(parents=True))
    with pytest.raises(Failed, match=reason):
        Build(tmp_path, f"FROM python:3-slim AS x\n{dockerfile}\n", {}).run("x")


def test_the_check_refuses_cuda_libraries_in_the_cpu_image(tmp_path: Path) -> None:
    python = tmp_path / "root/opt/adapterd/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho torch nvidia-cublas\n")
    python.chmod(0o755)
    check_libraries(Build(tmp_path, "", {}), "cpu", "")  # nobody asked for builds without them
    with pytest.raises(Failed, match="nvidia-cublas"):
        check_libraries(Build(tmp_path, "", {}), "cpu", "--extra-index-url URL")


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_every_step_of_the_cpu_image_runs_and_what_it_makes_serves() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.check_dockerfile", "--target", "cpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.endswith("OK: cpu\n"), done.stdout[-4000:] + done.stderr[-4000:]
    assert "exit code 0 on SIGTERM" in done.stdout and "healthy: adapterd health" in done.stdout
