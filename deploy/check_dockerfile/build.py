"""The steps of one target, in one scratch folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

from deploy.check_dockerfile.dockerfile import Failed, Step, expanded, is_let_through, order, parse, stages

CONTEXT = Path(__file__).parents[2]
LEFT_OUT = {
    "apt-get": "installs packages of the base image's distribution",
    "groupadd": "makes a group",
    "useradd": "makes an account",
}
ROOTS = "chown"
PATHS = re.compile(r"(?<![\w./}-])/(?=[a-z])(?!dev/)")
MACHINE = re.compile(r"PIP_\w+|\w+_proxy|SSL_CERT_\w+|HOME|LANG", re.IGNORECASE)  # what a step needs to reach an index
DISTRIBUTIONS = "import importlib.metadata as m; print(*sorted({d.name.lower() for d in m.distributions()}))"


@dataclass(slots=True)
class Image:
    """What a stage leaves behind besides its files."""

    env: dict[str, str]
    workdir: str = "/"
    user: str = "0"
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


class Build:
    """`root` is that of the stage that is built now, and at the end the target's."""

    def __init__(self, folder: Path, dockerfile: str, arguments: Mapping[str, str]) -> None:
        self.folder = folder
        self.root = folder / "root"
        self._stages = stages(parse(dockerfile))
        self._arguments = arguments
        self._images: dict[str, Image] = {}
        self._args: dict[str, str] = {}  # of the stage

    def run(self, target: str) -> Image:
        names = order(target, self._stages)
        for name in names:
            parent, steps = self._stages[name]
            self._begin(name, parent)
            for step in steps:
                self._step(step)
            if name != target:
                self.root.rename(self.folder / f"stage-{name}")
        return self._image

    def inside(self, text: str) -> str:
        """Paths of the image as paths of the scratch root."""
        return PATHS.sub(f"{self.root}/", text)

    def _begin(self, name: str, parent: str) -> None:
        outer = dict(self._arg(step.text) for step in self._stages[""][1])
        base = expanded(parent, outer)
        print(f"\n== {name}, from {base}", flush=True)
        if parent in self._images:
            self._image = deepcopy(self._images[parent])
            _link_tree(self.folder / f"stage-{parent}", self.root)
        else:
            local = self.root / "usr/local"  # where the base image's loader looks by itself
            self._image = Image(env={"PATH": f"{local}/bin:/usr/bin:/bin", "LD_LIBRARY_PATH": f"{local}/lib"})
            _put_python(local, base)
            (self.root / "tmp").mkdir()
        self._images[name] = self._image
        self._args = {}

    def _arg(self, text: str) -> tuple[str, str]:
        name, _, default = text.partition("=")
        return name, self._arguments.get(name, default.strip('"'))

    def _step(self, step: Step) -> None:
        image = self._image
        match step.name:
            case "ARG":
                name, value = self._arg(step.text)
                self._args[name] = value
            case "ENV":
                for name, value in re.findall(r"(\w+)=(\S+)", step.text):
                    image.env[name] = expanded(self.inside(value), image.env | self._args)
            case "WORKDIR":
                image.workdir = step.text
                Path(self.inside(step.text)).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = step.text
            case "VOLUME":
                image.volumes.append(step.text)
            case "EXPOSE":
                image.ports += map(int, step.text.split())
            case "ENTRYPOINT":
                image.entrypoint = json.loads(step.text)
            case "CMD":
                image.command = json.loads(step.text)
            case "HEALTHCHECK":
                image.health = json.loads(step.text.partition("CMD")[2])
            case "COPY":
                self._copy(step)
            case "RUN":
                self._run(step)
            case "STOPSIGNAL" if step.text == "SIGTERM":
                pass
            case _:
                raise Failed(f"line {step.line}: {step.name} {step.text} is not known here")

    def _copy(self, step: Step) -> None:
        print(f"{step.line:3} COPY {step.text}", flush=True)
        words = step.text.split()
        stage = next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None)
        *sources, target = [word for word in words if not word.startswith("--")]
        into = Path(self.inside(target if target.startswith("/") else f"{self._image.workdir}/{target}"))
        for source in sources:
            if stage:
                _link_tree(self.folder / f"stage-{stage}{source}", into)
            elif not is_let_through(source, CONTEXT / ".dockerignore"):
                raise Failed(f"line {step.line}: .dockerignore keeps {source} out")
            elif (CONTEXT / source).is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(CONTEXT / source, into, dirs_exist_ok=True, ignore=ignore)
            else:
                shutil.copy2(CONTEXT / source, into / source if target.endswith("/") else into)

    def _run(self, step: Step) -> None:
        for command in re.split(r"\s+&&\s+", step.text):
            program = command.split()[0]
            reason = LEFT_OUT.get(program) or ("root's to do" if program == ROOTS and os.geteuid() else None)
            if reason:
                print(f"{step.line:3} left out, {reason}: {command}", flush=True)
                continue
            print(f"{step.line:3} RUN {command}", flush=True)
            started = time.monotonic()
            env = {name: value for name, value in os.environ.items() if MACHINE.fullmatch(name)}
            done = subprocess.run(
                ["/bin/sh", "-c", self.inside(command)],
                cwd=self.inside(self._image.workdir) if self._image.workdir != "/" else self.root,
                env=env | self._args | self._image.env,
            )
            if done.returncode:
                raise Failed(f"line {step.line}: exit code {done.returncode} of {command}")
            print(f"    done in {time.monotonic() - started:.0f} s", flush=True)


def check_libraries(build: Build, target: str, asked: str) -> None:
    """The cpu image has no CUDA libraries, if its build was told where builds without them are."""
    python = build.root / "opt/adapterd/bin/python"
    done = subprocess.run([python, "-c", DISTRIBUTIONS], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    found = [name for name in names if name.startswith(("nvidia-", "triton"))]
    print(f"\n{len(names)} distributions, of CUDA: {', '.join(found) or 'none'}", flush=True)
    if target == "cpu" and found and asked:
        raise Failed(f"the cpu image has {', '.join(found)} in spite of PIP_EXTRA_ARGS={asked!r}")


def _link_tree(origin: Path, into: Path) -> None:
    shutil.copytree(origin, into, symlinks=True, dirs_exist_ok=True, copy_function=os.link)


def _put_python(local: Path, base: str) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not base.startswith(f"python:{version}-"):
        print(f"    python is {version} here, and not that of {base}")
    stdlib = Path(sysconfig.get_path("stdlib"))
    ignore = shutil.ignore_patterns("site-packages", "dist-packages", "test", "__pycache__")
    shutil.copytree(stdlib, local / "lib" / stdlib.name, symlinks=True, ignore=ignore)
    (local / "bin").mkdir()
    for name in ("python", "python3"):
        shutil.copy2(os.path.realpath(sys.executable), local / "bin" / name)
    for library in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
        shutil.copy2(library, local / "lib")
