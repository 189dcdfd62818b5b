"""What all deployments share: the example of tenants, what is kept secret, versions, and the documents."""

from __future__ import annotations

import re

from deployed import DEPLOY, ROOT, read

from deploy.check_dockerfile.dockerfile import is_let_through
from server.core import BASE
from server.tenants import read_tenants

README = (DEPLOY / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def test_the_example_of_tenants_can_be_read_and_nobody_has_its_tokens() -> None:
    acme, operator = read_tenants(DEPLOY / "tenants.example.toml")
    assert (acme.name, operator.name) == ("acme", "operator")
    assert acme.owns("acme-x") and not acme.owns("sst2-sentiment") and acme.may_use("sst2-sentiment")
    assert acme.may_use(BASE) and operator.may_use_all
    for digest in (*acme.credentials, *operator.credentials):
        assert len(set(digest)) == 1  # no token is known that has such a digest


def test_the_example_names_adapters_of_the_image() -> None:
    acme = read_tenants(DEPLOY / "tenants.example.toml")[0]
    shipped = {path.name for path in (ROOT / "examples" / "adapters").iterdir()}
    assert shipped and all(acme.may_use(name) for name in shipped)


def test_secrets_are_neither_committed_nor_sent_to_a_build() -> None:
    assert "/deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert not is_let_through("deploy", ROOT / ".dockerignore")


def test_files_and_commands_shown_in_the_readme_exist() -> None:
    for path in re.findall(r"\bdeploy/[\w./-]+\w", README):
        assert path.startswith("deploy/secrets") or (ROOT / path).exists(), path
    for target in set(re.findall(r"^make ([\w-]+)", README + CONTRIBUTING, re.M)):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), target
    assert len(re.findall(r"^\| `", README, re.M)) >= 6


def test_versions_of_the_images_are_the_projects() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    base, gpu = (read(DEPLOY / f"kubernetes/{name}/kustomization.yaml")["images"] for name in ("base", "overlays/gpu"))
    assert (base[0]["newTag"], gpu[0]["newTag"]) == (version[1], f"{version[1]}-cuda")
    cpu, cuda = (read(DEPLOY / name)["services"]["adapterd"] for name in ("compose.yaml", "compose.gpu.yaml"))
    assert (cpu["image"], cuda["image"]) == (f"adapterd:{version[1]}", f"adapterd:{version[1]}-cuda")
