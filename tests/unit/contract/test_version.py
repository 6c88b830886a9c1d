"""Versions compare as numbers; upgrades keep containers inside one YY.MM only."""

import pytest
from moorage_contract.version import API_VERSION, ENGINE_VERSION, VersionError, compare, parse, upgrade_allowed


def test_versions_compare_as_numbers() -> None:
    assert compare("26.8.3", "26.11.0") == -1
    assert compare("26.08.3", "26.8.3") == 0
    assert compare("26.11.10", "26.11.9") == 1
    assert str(parse(ENGINE_VERSION)) == ENGINE_VERSION
    assert API_VERSION == "1.51"


@pytest.mark.parametrize("text", ["", "26.11", "26.13.0", "26.0.1", "v26.11.0", "26.11.0rc1", "a.b.c"])
def test_text_that_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(VersionError):
        parse(text)


def test_patch_release_is_allowed_with_containers_running_both_ways() -> None:
    assert upgrade_allowed("26.11.0", "26.11.4", ["web"]).allowed
    assert upgrade_allowed("26.11.4", "26.11.0", ["web"]).allowed
    assert upgrade_allowed("26.11.0", "26.11.0", ["web"]).allowed


def test_other_release_is_refused_while_containers_run_and_names_them() -> None:
    verdict = upgrade_allowed("26.11.0", "27.1.0", ["web", "db"])
    assert not verdict.allowed and "web, db" in verdict.reason
    assert upgrade_allowed("26.11.0", "27.1.0", []).allowed
