from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.core import ANYONE, BASE, Tenant
from server.errors import AdapterNotFound, Forbidden, InvalidInput
from server.ledger import MAX_TENANTS
from server.tenants import NOBODY, Tenants, digest_of, read_tenants, require_own, require_use

HASH = "sha256:" + "0" * 64


def read(tmp_path: Path, text: str) -> tuple[Tenant, ...]:
    (tmp_path / "tenants.toml").write_text(text)
    return read_tenants(tmp_path / "tenants.toml")


def test_what_is_left_out_has_no_limit_and_no_right(tmp_path: Path) -> None:
    [tenant] = read(tmp_path, f'[acme]\ncredentials = ["{HASH}"]')
    assert tenant == Tenant("acme", credentials=("0" * 64,))
    assert not tenant.may_use("anything") and not tenant.can_load and tenant.weight == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "declares no tenant"),
        ("acme = 3", "outside of a tenant's table"),
        ("[acme", "tenants.toml"),
        ("[acme]", "neither credentials nor subjects"),
        (f'[acme]\ncredentials = ["{HASH}"]\nadaptors = ["a"]', "unknown key 'adaptors'; known: adapters, shared"),
        ('[acme]\ncredentials = ["secret"]', "not sha256: and 64 hex digits"),
        ('[acme]\ncredentials = "sha256:00"', "is not a list of texts"),
        ('[acme]\nsubjects = ["x"]\nweight = 0', "weight 0 must be from 0.01 to 100"),
        ('[acme]\nsubjects = ["x"]\nweight = -1.0', "must be a finite number, 0 or more"),
        ('[acme]\nsubjects = ["x"]\nweight = nan', "must be a finite number, 0 or more"),
        ('[acme]\nsubjects = ["x"]\nmax_pins = 1.5', "is not a whole number"),
        ('[acme]\nsubjects = ["x"]\nmax_pins = true', "is not a whole number"),
        ('[acme]\nsubjects = ["x"]\ncan_load = "yes"', "is not true or false"),
        ('[acme]\nsubjects = ["x"]\nname = "other"', "unknown key 'name'"),
        ('["../up"]\nsubjects = ["x"]', "cannot be a tenant's name"),
        ('[anyone]\nsubjects = ["x"]', "cannot be a tenant's name"),
        ('[a]\nsubjects = ["x"]\n[b]\nsubjects = ["x"]', "'a' and 'b' share one of their subjects"),
        (f'[a]\ncredentials = ["{HASH}"]\n[b]\ncredentials = ["{HASH}"]', "share one of their credentials"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_with_the_reason(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, text)
    assert message in caught.value.message and str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("text", ['["a-plain-token"]', '"a-plain-token"', '{ token = "a-plain-token" }'])
def test_no_secret_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, f"[acme]\ncredentials = {text}")
    assert "a-plain-token" not in caught.value.message


def test_callers_are_known_by_token_or_by_certificate() -> None:
    tenants = Tenants([Tenant("a", credentials=(digest_of("secret"),)), Tenant("b", subjects=("b.example",))])
    [a, b] = tenants.all
    assert tenants.of_token("secret") is a and tenants.of_token("Secret") is None and tenants.of_token("") is None
    assert tenants.of_subjects(["x", "b.example"]) is b and tenants.of_subjects([]) is None
    assert not tenants.are_open and Tenants().are_open and Tenants().get(ANYONE.name) == ANYONE


def test_one_that_left_may_do_nothing_and_one_that_stays_keeps_its_place() -> None:
    tenants = Tenants([Tenant("a", ("*",)), Tenant("b", ("*",))])
    before = tenants.get("b").index
    tenants.replace([Tenant("c"), Tenant("b", weight=2.0)])
    assert tenants.get("b").index == before and tenants.get("b").weight == 2
    assert tenants.get("a") is NOBODY and not NOBODY.may_use("x")
    assert len({tenant.index for tenant in tenants.all} | {0, 1}) == 4


def test_places_in_the_ledger_run_out_with_an_error_and_those_before_stay() -> None:
    tenants = Tenants([Tenant("first")])
    with pytest.raises(InvalidInput, match="restart for more"):
        tenants.replace([Tenant(f"t{i}") for i in range(MAX_TENANTS)])
    assert [tenant.name for tenant in tenants.all] == ["first"]


@pytest.mark.parametrize(
    ("name", "owns", "uses"),
    [
        ("acme-x", True, True),
        ("public-x", False, True),
        (BASE, False, True),
        ("acme", False, False),
        ("x", False, False),
    ],
)
def test_patterns_say_whose_an_adapter_is_and_who_may_use_it(name: str, owns: bool, uses: bool) -> None:
    tenant = Tenant("acme", adapters=("acme-*",), shared=("public-?", BASE), can_load=True)
    assert (tenant.owns(name), tenant.may_use(name)) == (owns, uses)
    if not uses:
        for require in (require_use, require_own):
            with pytest.raises(AdapterNotFound):
                require(tenant, name)
    elif not owns:
        with pytest.raises(Forbidden, match="shared"):
            require_own(tenant, name)
    else:
        require_own(tenant, name)
        with pytest.raises(Forbidden, match="can_load"):
            require_own(replace(tenant, can_load=False), name)


def test_an_adapter_belongs_to_the_first_that_has_it() -> None:
    tenants = Tenants([Tenant("a", ("x-*",)), Tenant("b", ("*",)), Tenant("c", ("y",))])
    assert [getattr(tenants.owner_of(name), "name", "") for name in ("x-1", "y")] == ["a", "b"]
