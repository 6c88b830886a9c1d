"""What a saved state is valid for, and what becomes of its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from moorage_contract.image_manifest import ImageFile, Manifest
from moorage_host.link import keys
from moorage_host.machine import saved
from moorage_host.machine.accelerator import Circumstances
from moorage_host.machine.domain_xml import Domain
from moorage_host.machine.saved import Plan, SavedState
from moorage_host.paths import Paths
from moorage_host.settings import SavedStartSetting

NOW = Circumstances(qemu="QEMU 7.2", kernel="6.1", host="abc")


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path / "config", tmp_path / "state", tmp_path / "data")
    found.machine.mkdir(parents=True)
    return found


def domain(folder: Path) -> Domain:
    emulator = folder / "qemu"
    emulator.touch()
    path = Path("/x")
    return Domain(
        "moorage", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "amd64", "tcg", emulator, 2, 2048, path, path, path, path,
        "quiet", path, path, held=True,
    )  # fmt: skip


def manifest(root: str = "r") -> Manifest:
    return Manifest(
        "amd64", "1.0", "trixie", "6.12", "now", "i", "quiet", "ttyS0", ImageFile("k", "k", 1), ImageFile("i", "i", 1),
        ImageFile("r", root, 1), {},
    )  # fmt: skip


def written(state: SavedState, key: str) -> None:
    """As after a preparation."""
    assert state.plan(key) is Plan.SAVE
    state.begin_preparing()
    assert state.preparing
    state.staged_console.write_text("the boot")
    state.staged.write_bytes(b"memory")
    state.keep(key)
    state.end_preparing()
    assert not state.preparing and not state.staged.exists()


def test_whatever_the_memory_holds_or_qemu_must_find_again_changes_the_key(tmp_path: Path) -> None:
    base, pair = domain(tmp_path), keys.ensure(tmp_path / "a", tmp_path / "b")
    other_pair = keys.ensure(tmp_path / "c", tmp_path / "b")
    found = {
        saved.key(base, manifest(), NOW, pair, 9000000, 1 << 30),
        saved.key(replace(base, memory_mib=1024), manifest(), NOW, pair, 9000000, 1 << 30),
        saved.key(replace(base, cpus=1), manifest(), NOW, pair, 9000000, 1 << 30),
        saved.key(replace(base, name="other"), manifest(), NOW, pair, 9000000, 1 << 30),
        saved.key(base, manifest("another root"), NOW, pair, 9000000, 1 << 30),
        saved.key(base, manifest(), replace(NOW, qemu="QEMU 9"), pair, 9000000, 1 << 30),
        saved.key(base, manifest(), replace(NOW, kernel="6.12"), pair, 9000000, 1 << 30),
        saved.key(base, manifest(), replace(NOW, host="moved"), pair, 9000000, 1 << 30),
        saved.key(base, manifest(), NOW, other_pair, 9000000, 1 << 30),
        saved.key(base, manifest(), NOW, pair, 10000000, 1 << 30),
        saved.key(base, manifest(), NOW, pair, 9000000, 2 << 30),
    }
    assert len(found) == 11
    assert saved.key(base, manifest(), NOW, pair, 9000000, 1 << 30) in found


def test_emulator_that_was_installed_again_changes_the_key(tmp_path: Path) -> None:
    base, pair = domain(tmp_path), keys.ensure(tmp_path / "a", tmp_path / "b")
    before = saved.key(base, manifest(), NOW, pair, 1, 1)
    base.emulator.write_text("newer")
    assert saved.key(base, manifest(), NOW, pair, 1, 1) != before


@pytest.mark.parametrize(
    ("setting", "accelerator", "arch", "expected"),
    [
        ("auto", "tcg", "amd64", True),
        ("auto", "kvm", "amd64", False),
        ("auto", "tcg", "arm64", False),
        ("on", "kvm", "amd64", True),
        ("off", "tcg", "amd64", False),
    ],
)
def test_auto_means_where_a_boot_is_slow(
    setting: SavedStartSetting, accelerator: str, arch: str, expected: bool
) -> None:
    assert saved.wanted(setting, accelerator, arch) is expected


def test_whole_state_is_restored_by_its_own_key_alone(paths: Paths) -> None:
    state = SavedState(paths)
    paths.console_log.write_text("what the machine said last")
    written(state, "one")
    assert paths.console_log.read_text() == "what the machine said last"
    assert paths.saved_state.stat().st_mode & 0o777 == 0o600
    assert state.plan("one") is Plan.RESTORE
    state.continue_console()
    assert paths.console_log.read_text().startswith("the boot\nmoorage: saved here; restored at ")
    assert state.plan("another") is Plan.SAVE
    assert not paths.saved_state.exists() and not paths.saved_console.exists()


def test_state_that_was_cut_is_not_restored(paths: Paths) -> None:
    """The backend died while libvirt wrote; and a file that is not as it was."""
    state = SavedState(paths)
    assert state.plan("one") is Plan.SAVE
    state.staged.write_bytes(b"half")
    assert state.plan("one") is Plan.SAVE
    assert not state.staged.exists()
    written(state, "one")
    paths.saved_state.write_bytes(b"other")
    assert state.plan("one") is Plan.SAVE
    assert not paths.saved_state.exists()


def test_after_two_failures_under_the_same_circumstances_machines_only_boot(paths: Paths) -> None:
    state = SavedState(paths)
    for _turn in range(2):
        written(state, "one")
        state.failed("one")
        assert not paths.saved_state.exists()
    assert state.plan("one") is Plan.BOOT
    assert state.plan("after an upgrade") is Plan.SAVE


def test_a_start_that_works_clears_earlier_failures(paths: Paths) -> None:
    state = SavedState(paths)
    for _turn in range(3):
        written(state, "one")
        state.failed("one")
        written(state, "one")
        state.works()
        assert state.plan("one") is Plan.RESTORE
        paths.saved_state.unlink()


def test_little_space_means_no_state(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "LEAST_FREE_MIB", 1 << 40)
    assert SavedState(paths).plan("one") is Plan.BOOT


@pytest.mark.parametrize(
    "text", ["{", "[]", json.dumps({"format": 99, "key": "one"}), '{"format": 1, "failures": "x"}']
)
def test_unreadable_record_counts_as_none(paths: Paths, text: str) -> None:
    paths.saved_record.write_text(text)
    paths.saved_state.write_bytes(b"of unknown origin")
    assert SavedState(paths).plan("one") is Plan.SAVE
    assert not paths.saved_state.exists()


def test_processor_is_described_without_what_changes_by_itself(tmp_path: Path) -> None:
    def listing(bogomips: str, megahertz: str) -> Path:
        path = tmp_path / "cpuinfo"
        path.write_text(
            f"vendor_id : A\nflags : fpu sse\ncpu MHz : {megahertz}\nbogomips : {bogomips}\n\nprocessor : 1\n"
        )
        return path

    first, second = saved._processor(listing("4999.98", "2500")), saved._processor(listing("5000.12", "3100"))
    assert first == second and "fpu sse" in first
    assert saved._processor(listing("6400.00", "2500")) != first
    assert saved._processor(tmp_path / "none")
