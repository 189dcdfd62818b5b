"""The command of an image in its scratch root: from a health check that fails to one that fails again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from deploy.check_dockerfile.build import Build, Image
from deploy.check_dockerfile.dockerfile import Failed

START_S, STOP_S, CALL_S = 180.0, 60.0, 60.0
TEXT = "will it rain in paris tomorrow"
# A volume begins as what the image has at its place, and is writable; what it is mounted over is not.
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount --bind "$2" "$1/tmp" && shift 2'
VOLUME = ' && mount --bind "$1" "$2" && shift 2'
PICKLED = "pickled"
PICKLE = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file
folder = Path(sys.argv[1])
for name in ("adapter", "model_head"):
    torch.save(load_file(folder / f"{name}.safetensors"), folder / f"pytorch_{name}.bin")
    (folder / f"{name}.safetensors").unlink()
"""


class Container:
    def __init__(self, build: Build, image: Image) -> None:
        self._image = image
        self._env = image.env | {"TMPDIR": str(build.root / "tmp")}
        self._command = [build.inside(word) for word in [*image.entrypoint, *image.command]]
        self._health = [build.inside(word) for word in image.health]
        self._adapters = build.root / "adapters"
        self._log = build.folder / "server.log"
        self._add_pickled(build.root / "opt/adapterd/bin/python")
        self._confined = [*_read_only(build, image), *_as_user(image.user)]

    def check(self) -> None:
        for port in self._image.ports:
            if _is_open(port):
                raise Failed(f"something listens on port {port} already; end it first")
        if self._call(self._health).returncode == 0:
            raise Failed("it is healthy before it runs")
        code = self._serve()
        print(self._log.read_text(), f"exit code {code} on SIGTERM", sep="", flush=True)
        if code:
            raise Failed(f"exit code {code} on SIGTERM")
        if self._call(self._health).returncode == 0:
            raise Failed("it is healthy after its end")

    def _serve(self) -> int:
        print(f"$ {' '.join(self._command)}", flush=True)
        command = [*self._confined, *self._command]
        with self._log.open("w") as log:
            server = subprocess.Popen(command, env=self._env, stderr=log, start_new_session=True)
        try:
            self._until_healthy(server)
            self._use()
            server.send_signal(signal.SIGTERM)
            return server.wait(STOP_S)
        except (Failed, subprocess.TimeoutExpired) as error:
            raise Failed(f"{error}\n{self._log.read_text()[-4000:]}") from error
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)

    def _until_healthy(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while self._call(self._health).returncode:
            if server.poll() is not None:
                raise Failed(f"the command ended with {server.returncode} before it served")
            if time.monotonic() > deadline:
                raise Failed(f"it is not healthy after {START_S:g} s")
        print(f"healthy: {' '.join(self._health)}", flush=True)

    def _use(self) -> None:
        for port in self._image.ports:
            if not _is_open(port):
                raise Failed(f"nothing listens on port {port}, which is exposed")
        for path in sorted(self._adapters.iterdir()):
            done = self._call([*self._image.entrypoint, "predict", path.name, TEXT])
            if done.returncode or not done.stdout:
                raise Failed(f"{path.name} does not answer: {done.stderr}")
            print(f"{path.name}: {' '.join(done.stdout.split())}", flush=True)

    def _add_pickled(self, python: Path) -> None:
        """One more adapter, in files that a process of its own converts in /tmp."""
        folder = shutil.copytree(min(self._adapters.iterdir()), self._adapters / PICKLED)
        subprocess.run([python, "-c", PICKLE, folder], check=True)

    def _call(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        confined = [*self._confined, *command]
        return subprocess.run(confined, env=self._env, capture_output=True, text=True, timeout=CALL_S)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _read_only(build: Build, image: Image) -> list[str]:
    """What starts a command that sees its root read-only."""
    tmp = build.folder / "tmp"
    tmp.mkdir()
    tmp.chmod(0o1777)
    script, arguments = READ_ONLY, [str(build.root), str(tmp)]
    for number, volume in enumerate(image.volumes):
        place, beside = Path(build.inside(volume)), build.folder / f"volume-{number}"
        shutil.copytree(place, beside)
        os.chown(beside, place.stat().st_uid, place.stat().st_gid)
        script, arguments = script + VOLUME, [*arguments, str(beside), str(place)]
    start = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    confined = [*start, "sh", "-c", script + ' && exec "$@"', "sh", *arguments]
    written = build.root / "written"
    probe = subprocess.run([*confined, "touch", str(written)], capture_output=True, text=True)
    if "Read-only" in probe.stderr:
        print("the root is read-only, but for /tmp and the volumes")
        return confined
    written.unlink(missing_ok=True)
    print(f"the root is not read-only here, for no mount namespace can be had: {probe.stderr.strip()}")
    return []


def _as_user(user: str) -> list[str]:
    if os.geteuid():
        print(f"the command runs as {os.geteuid()}; {user} is root's to become")
        return []
    uid, _, gid = user.partition(":")
    print(f"the command runs as {user}, without privileges")
    ids = [f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups"]
    return ["setpriv", *ids, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
