from dataclasses import replace
from pathlib import Path

import pytest
from moorage_host.errors import HostError
from moorage_host.machine import accelerator
from moorage_host.machine.accelerator import Circumstances, Memory, choose

NOW = Circumstances(qemu="QEMU 7.2", kernel="6.1", host="abc")


def test_hardware_is_tried_first_and_may_fall_back(tmp_path: Path) -> None:
    choice = choose("auto", Memory(tmp_path / "a.json", NOW), lambda: "kvm")
    assert (choice.name, choice.may_fall_back) == ("kvm", True)


def test_without_hardware_tcg_is_chosen(tmp_path: Path) -> None:
    assert choose("auto", Memory(tmp_path / "a.json", NOW), lambda: None).name == "tcg"


def test_a_chosen_accelerator_never_falls_back(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "a.json", NOW)
    memory.remember("kvm", "it aborts")
    choice = choose("kvm", memory, lambda: "kvm")
    assert (choice.name, choice.may_fall_back) == ("kvm", False)


@pytest.mark.parametrize("change", [{"qemu": "QEMU 9"}, {"kernel": "6.12"}, {"host": "other"}])
def test_failure_is_remembered_until_anything_it_depends_on_changes(tmp_path: Path, change: dict[str, str]) -> None:
    path = tmp_path / "a.json"
    Memory(path, NOW).remember("kvm", "it aborts")
    again = choose("auto", Memory(path, NOW), lambda: "kvm")
    assert (again.name, "it aborts" in again.note) == ("tcg", True)
    assert choose("auto", Memory(path, replace(NOW, **change)), lambda: "kvm").name == "kvm"


def test_damaged_memory_counts_as_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[")
    assert Memory(path, NOW).failure("kvm") is None


def test_missing_qemu_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        accelerator.emulator("amd64")
    assert "qemu-system-x86" in caught.value.hint
