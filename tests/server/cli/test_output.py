"""--json on every command, and errors that say what to do."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest
from fakes import make_base
from make_adapters import make_adapter
from typer.testing import CliRunner, Result

from server import cli
from server.cli import cluster, doctor, options, output, serve
from server.tenants import digest_of

# What has no answer that a program could read: serve runs until it is stopped and tells by its log, the health service
# and the metrics how it is; demo is a table for people, whose answers `predict --json` gives one by one.
WITHOUT_JSON = {"serve", "demo"}


def adapterd(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def lines(done: Result) -> list[dict[str, object]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def failure(done: Result, exit_code: int) -> dict[str, str]:
    """The one object on stderr; nothing is on stdout."""
    assert (done.exit_code, done.stdout) == (exit_code, ""), done.output
    facts: dict[str, str] = json.loads(done.stderr)
    assert set(facts) == {"error", "reason", "code"}
    return facts


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.NAME)
def test_every_verb_has_json(verb: ModuleType) -> None:
    done = adapterd(verb.NAME, "--help")
    assert ("--json" in done.stdout) == (verb.NAME not in WITHOUT_JSON)


def test_doctor_takes_all_that_serve_takes() -> None:
    theirs, ours = (inspect.signature(module.run).parameters for module in (serve, doctor))
    assert set(ours) - set(theirs) == {"server", "token", "as_json"} and set(theirs) <= set(ours)
    assert set(theirs) == {*options.SETTINGS, "config", "assign", "context"}


def test_a_cluster_takes_all_that_serve_takes_but_ports() -> None:
    theirs, ours = (set(inspect.signature(module.run).parameters) for module in (serve, cluster))
    assert theirs - ours == {"port", "http_port"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--detach",), "--detach needs --address"),
        (("--down",), "--down needs --address"),
        (("--replicas", "few"), "'few' is neither a number nor of the form 1..8"),
        (("--set", "api.replicas=file:x"), "leave it out"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_before_ray_starts(arguments: tuple[str, ...], says: str) -> None:
    assert says in failure(adapterd("cluster", "--on", "ray", *arguments, "--json"), 1)["error"]


def test_what_is_pushed_is_searched_and_pulled_as_json(tmp_path: Path) -> None:
    make_adapter(tmp_path / "reviews", make_base(hidden_size=32, num_layers=2))
    registry = tmp_path / "registry"
    [pushed] = lines(adapterd("push", tmp_path / "reviews", registry, "--tag", "v1", "--json"))
    assert pushed["name"] == "reviews" and pushed["tags"] == ["v1"]
    [found] = lines(adapterd("search", "--from", registry, "--json"))
    assert found["revision"] == pushed["revision"] and found["method"] == "bottleneck"
    [pulled] = lines(adapterd("pull", "reviews@v1", "--from", registry, "--output", tmp_path / "pulled", "--json"))
    assert pulled == {
        "folder": str(tmp_path / "pulled" / "reviews"),
        **{key: pushed[key] for key in ("name", "revision", "size_bytes")},
    }


def test_a_token_is_a_document() -> None:
    [facts] = lines(adapterd("token", "acme", "--json"))
    assert facts["credentials"] == [f"sha256:{digest_of(str(facts['token']))}"]
    assert (facts["tenant"], facts["adapters"]) == ("acme", ["acme-*"])


def test_what_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    output.say({"a": float("nan"), "b": [1.5, float("inf")], "c": "é"})
    assert capsys.readouterr().out == '{"a": null, "b": [1.5, null], "c": "é"}\n'


def test_a_name_that_no_tenant_can_have_gets_no_token() -> None:
    assert "'a b' cannot be a tenant's name" in failure(adapterd("token", "a b", "--json"), 1)["error"]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason", "says"),
    [
        (("push", "/none", "/tmp/registry"), 2, "INVALID_INPUT", "/none holds no adapter"),
        (("pull", "reviews"), 2, "INVALID_INPUT", "give --from"),
        (("search", "--from", "/none/registry"), 2, "UNAVAILABLE", "is not there"),
        (("verify", "/none"), 2, "INVALID_INPUT", "/none holds no readable manifest.json"),
        (("verify",), 2, "INVALID_INPUT", "name a folder of recorded cases"),
        (
            ("train", "--task", "regression", "--train", "/none.csv", "--output", "/tmp/none"),
            2,
            "INVALID_INPUT",
            "/none.csv does not exist; name a .csv",
        ),
        (("predict", "a", "b", "--pair", "c", "--pair", "d"), 1, "INVALID_INPUT", "give one pair per text"),
        (("list", "--server", "127.0.0.1:1"), 1, "", "nobody answers at 127.0.0.1:1 (Connection refused); start one"),
        (("traffic", "a", "--server", "127.0.0.1:1"), 1, "", "name another with --server HOST:PORT"),
        (("health", "--server", "127.0.0.1:1", "--timeout", "0.1"), 1, "", "nobody answers at 127.0.0.1:1"),
        (("top", "--http", "127.0.0.1:1", "--once"), 1, "UNAVAILABLE", "no answer from 127.0.0.1:1"),
        (("traffic", "a", "b=c"), 2, "INVALID_INPUT", "'b=c' is not DIGEST=PERCENT"),
        (("list", "--prefixx"), 2, "INVALID_INPUT", "--prefix"),
        (("lst",), 2, "INVALID_INPUT", "Did you mean 'list'"),
        (("predict",), 2, "INVALID_INPUT", "Missing argument"),
    ],
)
def test_errors_are_told_as_json_with_a_remedy(
    arguments: tuple[str, ...], exit_code: int, reason: str, says: str
) -> None:
    facts = failure(adapterd(*arguments, "--json"), exit_code)
    assert facts["reason"] == reason and says in facts["error"] and facts["code"].isupper()
    plain = adapterd(*arguments)
    assert (plain.exit_code, plain.stdout) == (exit_code, "")


def test_a_file_that_a_variable_names_and_nobody_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERD_CERTIFICATE", "/none.pem")
    done = adapterd("list")
    assert done.exit_code == 1 and done.stderr.startswith("adapterd: ADAPTERD_CERTIFICATE names /none.pem")
    assert "name a PEM file that you may read, or unset it" in done.stderr


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--config", "configuration /none.toml cannot be read: No such file or directory; name a TOML file with"),
        ("--tenants", "tenants file none.toml cannot be read: No such file or directory; name another one with"),
    ],
)
def test_files_that_serve_cannot_read_are_named(option: str, says: str) -> None:
    done = adapterd("serve", option, "/none.toml", "--port", "0", "--http-port", "0")
    assert done.exit_code == 1 and f"adapterd: {says} {option}" in done.stderr
