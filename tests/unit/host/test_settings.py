import json
from pathlib import Path

import pytest
from moorage_host import settings
from moorage_host.errors import HostError


def test_missing_file_means_defaults(tmp_path: Path) -> None:
    assert settings.load(tmp_path / "settings.json").name == "moorage"


def test_unknown_keys_survive_a_change(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"memory_mib": 1024, "of-a-newer-release": [1]}))
    settings.save(settings.changed(settings.load(path), {"cpus": 1}), path)
    content = json.loads(path.read_text())
    assert (content["of-a-newer-release"], content["memory_mib"], content["cpus"]) == ([1], 1024, 1)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("text", ["{", "[]", '{"cpus": 0}', '{"image": "relative"}', '{"accelerator": "warp"}', "\x00"])
def test_unusable_settings_are_one_sentence_with_a_hint(tmp_path: Path, text: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(text)
    with pytest.raises(HostError) as caught:
        settings.load(path)
    assert str(path) in caught.value.message
    assert "remove" in caught.value.hint


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"cpus": 0, "memory_mib": "much"}')
    with pytest.raises(HostError, match=r"cpus.*memory_mib"):
        settings.load(path)


def test_unreadable_settings_say_so(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.mkdir()
    with pytest.raises(HostError, match="cannot be read"):
        settings.load(path)


def test_unknown_setting_is_refused_and_known_ones_are_named() -> None:
    with pytest.raises(HostError) as caught:
        settings.changed(settings.Settings(), {"cpu": 2})
    assert "cpus" in caught.value.hint
