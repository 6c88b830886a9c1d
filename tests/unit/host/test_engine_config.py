from pathlib import Path

import pytest
from moorage_contract.agent import ConfigApplied
from moorage_host.engine_config import EngineConfig


class Guest:
    """A guest that takes or refuses whatever it is given."""

    def __init__(self, content: str = "{}\n", refusal: str = "") -> None:
        self.content = content
        self.refusal = refusal
        self.modes: list[str] = []

    async def config_text(self) -> str:
        return self.content

    async def config_apply(self, content: str, mode: str) -> ConfigApplied:
        self.modes.append(mode)
        if self.refusal:
            return ConfigApplied(ok=False, message=self.refusal, rolled_back=True)
        self.content = content
        return ConfigApplied(ok=True)


@pytest.fixture
def config(tmp_path: Path) -> EngineConfig:
    return EngineConfig(tmp_path / "config" / "daemon.json")


async def test_reloadable_change_is_reloaded_and_another_restarts(config: EngineConfig) -> None:
    guest = Guest()
    assert (await config.apply('{"debug": true}', guest)).ok
    assert (await config.apply('{"debug": true, "log-driver": "local"}', guest)).ok
    assert guest.modes == ["reload", "restart"]
    assert config.get().content == guest.content


async def test_refusal_keeps_the_file_in_force_and_tells_the_daemons_words(config: EngineConfig) -> None:
    await config.apply('{"debug": true}', Guest())
    applied = await config.apply('{"debug": false}', Guest(refusal="the daemon says no"))
    assert (applied.ok, applied.rolled_back, applied.message) == (False, True, "the daemon says no")
    assert config.get().content == '{"debug": true}'


async def test_what_was_saved_while_down_is_applied_when_the_guest_comes(config: EngineConfig) -> None:
    assert config.save('{"debug": true}').pending
    guest = Guest()
    assert await config.reconcile(guest) == ""
    assert guest.content == '{"debug": true}'
    assert not config.pending


async def test_refused_pending_file_is_kept_aside_and_said(config: EngineConfig, tmp_path: Path) -> None:
    config.save('{"debug": true}')
    problem = await config.reconcile(Guest(refusal="no"))
    assert "no" in problem
    assert (tmp_path / "config" / "daemon.json.rejected").read_text() == '{"debug": true}'
    assert config.get().content == "{}\n"


async def test_settings_outlive_the_disk(config: EngineConfig) -> None:
    await config.apply('{"debug": true}', Guest())
    fresh = Guest()
    await config.reconcile(fresh)
    assert fresh.content == '{"debug": true}'


async def test_a_change_made_inside_the_guest_is_learned(config: EngineConfig) -> None:
    await config.reconcile(Guest(content='{"debug": true}'))
    assert config.get().content == '{"debug": true}'


async def test_faulty_text_never_reaches_the_guest(config: EngineConfig) -> None:
    guest = Guest()
    assert not (await config.apply("{", guest)).ok
    assert not config.save('{"nonsense": 1}').ok
    assert guest.modes == []


@pytest.mark.parametrize("name", ["daemon.json", "daemon.json.pending"])
async def test_unreadable_copy_of_the_host_is_told_and_the_guest_keeps_its_own(
    config: EngineConfig, tmp_path: Path, name: str
) -> None:
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / name
    path.write_bytes(b"\xff\xfe")
    guest = Guest('{"debug": true}')
    assert f"{path} cannot be read" in await config.reconcile(guest)
    assert (guest.content, guest.modes, path.read_bytes()) == ('{"debug": true}', [], b"\xff\xfe")
