"""Another host that the machine is to run on, played by this one: a user with sshd and libvirt's session daemon of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ALONE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What tests.support.remote_place has seen."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    command = [*ALONE, "tini", "--", sys.executable, "-m", "tests.support.remote_place"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_libvirt_is_reached_by_its_helper_its_socket_and_a_name_in_ssh_config(seen: dict[str, Any]) -> None:
    assert seen["arch"] == seen["arch_by_socket"] == seen["arch_by_ssh_config"]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("unknown_host", ["is not in", "ssh-ed25519 host key SHA256:", "make it known: ssh -p"]),
        ("changed_host", ["shows another host key", "ssh-keygen -R"]),
        ("revoked_host", ["is revoked in"]),
        ("not_let_in", ["does not let there log in", "ssh-agent", "?keyfile="]),
        ("locked_key", ["is encrypted", "ssh-add"]),
        ("not_there", ["cannot be reached over SSH", "refused"]),
        ("no_socket", ["libvirt cannot open", "nobody answers at /nowhere", "is libvirt installed on 127.0.0.1"]),
        ("no_emulator", ["finds no qemu-system-aarch64", "install QEMU there"]),
        ("no_space", ["MiB are free in", "on 127.0.0.1", "free some space there"]),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence_with_what_to_do(seen: dict[str, Any], what: str, words: list[str]) -> None:
    for word in words:
        assert word in seen[f"error_{what}"]


def test_interrupted_copy_does_not_count_and_the_rest_is_not_sent_again(seen: dict[str, Any]) -> None:
    assert seen["whole_when_interrupted"] == ["initrd.img", "vmlinuz"]
    assert seen["copied_after_interruption"] == ["root.squashfs"]
    assert (seen["same"], seen["told"]) == (True, "moorage")


def test_another_image_takes_the_place_of_the_old_one_and_the_disk_stays(seen: dict[str, Any]) -> None:
    assert seen["copied_of_another"] == ["root.squashfs"]
    assert (seen["files"], seen["disk_kept"]) == (5, True)


def test_files_are_the_users_alone_and_go_with_the_machine(seen: dict[str, Any]) -> None:
    assert (seen["modes"], seen["folder_mode"], seen["left"]) == (["0o600"], "0o700", False)
