"""What a user gets when something that a start needs is missing, full, damaged or in the way: a sentence and what to do."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from moorage_contract import image_manifest as manifest
from moorage_contract.image_manifest import Manifest, described
from moorage_host.client import Client
from moorage_host.machine.accelerator import QEMU, native_arch
from moorage_host.paths import Paths, user_paths

from tests.support.host import backend_client, backend_pid, user_home, wait_ended

pytestmark = pytest.mark.timeout(180)

Said = subprocess.CompletedProcess[str]
ARCH = native_arch()
OTHER = {"amd64": "arm64", "arm64": "amd64"}


@pytest.fixture
def home() -> Iterator[Path]:
    with user_home() as folder:
        yield folder


@pytest.fixture
def paths(home: Path) -> Iterator[Paths]:
    paths = user_paths()
    with backend_client(paths):
        yield paths


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole PATH, for the backend too."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def image(folder: Path, arch: str = ARCH) -> Path:
    """An image that is whole by its manifest; nothing would boot from it."""
    folder.mkdir()
    names = ("vmlinuz", "initrd.img", "root.squashfs")
    for name in names:
        (folder / name).write_bytes(name.encode() * 100)
    kernel, initrd, root = (described(folder / name) for name in names)
    content = Manifest(
        arch, "26.11.0", "trixie", "6.12", "2026-11-01T00:00:00Z", "x", "", "ttyS0", kernel, initrd, root, {}
    )
    manifest.write(content, folder)
    return folder


def moorage(*arguments: str, stdin: str = "") -> Said:
    program = Path(sys.executable).with_name("moorage")
    environment = os.environ | {"COLUMNS": "300"}
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, timeout=120, input=stdin, env=environment
    )


def assert_sentence(result: Said, status: int, *words: str) -> None:
    """One failure, told on stderr with what to do, no traceback, and nothing half made."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_missing_qemu_says_what_to_install(paths: Paths, programs: Path, tmp_path: Path) -> None:
    result = moorage("start", "--image", str(image(tmp_path / "image")))
    assert_sentence(result, 6, f"{QEMU[ARCH]} is not installed", "install QEMU", "qemu-system")
    assert Client(paths).status().state == "absent"


def test_missing_qemu_img_says_what_to_install(paths: Paths, programs: Path, tmp_path: Path) -> None:
    script(programs, QEMU[ARCH], "exit 0")
    result = moorage("start", "--image", str(image(tmp_path / "image")))
    assert_sentence(result, 6, "qemu-img is not installed", "qemu-utils")


def test_qemu_that_does_not_run_is_told_with_its_own_words(paths: Paths, programs: Path, tmp_path: Path) -> None:
    script(programs, QEMU[ARCH], "echo 'cannot open shared object libx.so' >&2; exit 127")
    script(programs, "qemu-img", 'for file; do :; done; shift 6; : > "$1"')
    result = moorage("start", "--image", str(image(tmp_path / "image")))
    assert_sentence(result, 1, "does not run", "libx.so", "install QEMU again")


def test_libvirt_that_cannot_be_opened_says_what_to_do(paths: Paths, tmp_path: Path) -> None:
    result = moorage("start", "--image", str(image(tmp_path / "image")), "--libvirt-uri", "nonsense:///here")
    assert_sentence(result, 6, "libvirt cannot open nonsense:///here", "libvirt-daemon-system", "libvirt_uri")


def test_damaged_image_is_named_at_start(paths: Paths, tmp_path: Path) -> None:
    folder = image(tmp_path / "image")
    (folder / "root.squashfs").write_bytes(b"half of it")
    assert_sentence(moorage("start", "--image", str(folder)), 1, "is damaged", "root.squashfs", "moorage image build")


def test_image_of_another_architecture_is_refused(paths: Paths, tmp_path: Path) -> None:
    folder = image(tmp_path / "image", OTHER[ARCH])
    assert_sentence(moorage("start", "--image", str(folder)), 2, f"is for {OTHER[ARCH]}", "moorage image build")


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """The user's folder for state is on a disk of one MiB."""
    state = home / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", state], check=True)
    try:
        with backend_client(user_paths()):
            yield state
    finally:
        subprocess.run(["umount", state], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the space that is left."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return path


def test_disk_that_is_too_small_says_where_and_how_much_is_needed(small_disk: Path, tmp_path: Path) -> None:
    result = moorage("start", "--image", str(image(tmp_path / "image")))
    assert_sentence(result, 6, "MiB are free in", str(small_disk), "512 MiB", "free some space")


def test_full_disk_fails_the_command_and_not_the_backend(small_disk: Path, tmp_path: Path) -> None:
    client = Client(user_paths())
    pid = client.status().backend.pid
    filler = fill(small_disk)
    result = moorage("start", "--image", str(image(tmp_path / "image")))
    assert_sentence(result, 6 if "free in" in result.stderr else 1)
    assert "No space left" in result.stderr or "MiB are free" in result.stderr
    filler.unlink()
    assert client.status().backend.pid == pid


def test_file_where_a_folder_should_be_is_named(home: Path) -> None:
    (home / "state").mkdir()
    (home / "state" / "moorage").write_text("in the way")
    result = moorage("status")
    assert_sentence(result, 1, f"cannot make the folder {home / 'state' / 'moorage'}", "parent folder")


def test_damaged_key_is_named(paths: Paths, programs: Path, tmp_path: Path) -> None:
    script(programs, QEMU[ARCH], "echo QEMU 7")
    script(programs, "qemu-img", 'shift 6; : > "$1"')
    paths.machine.mkdir(parents=True)
    paths.client_key.write_text("no key")
    result = moorage("start", "--image", str(image(tmp_path / "image")))
    assert_sentence(result, 1, f"the key {paths.client_key} cannot be read", "remove the file")


@pytest.mark.parametrize("content", ["{", '{"cpus": "many"}', "\udcff"])
def test_unreadable_settings_fail_a_start_by_name_and_leave_status_alone(paths: Paths, content: str) -> None:
    paths.config.mkdir(parents=True)
    paths.settings.write_text(content, errors="surrogateescape")
    assert_sentence(moorage("start"), 2, str(paths.settings), "remove")
    assert_sentence(moorage("settings", "cpus=1"), 2, str(paths.settings))
    assert moorage("status").returncode == 3


def test_backend_killed_under_a_command_is_a_sentence_and_the_next_command_works(
    paths: Paths, programs: Path, tmp_path: Path
) -> None:
    script(programs, QEMU[ARCH], "echo QEMU 7")
    fifo = tmp_path / "started"
    os.mkfifo(fifo)
    script(programs, "qemu-img", f"echo $$ > {fifo}; exec /bin/sleep 600")
    program = Path(sys.executable).with_name("moorage")
    command = [str(program), "start", "--image", str(image(tmp_path / "image"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        sleeper = int(fifo.read_text())
        pid = backend_pid(paths)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        os.kill(sleeper, signal.SIGKILL)
        wait_ended(pid)
        output, errors = process.communicate(timeout=60)
    assert_sentence(subprocess.CompletedProcess(command, process.returncode, output, errors), 6, "backend", "again")
    assert Client(paths).status().backend.pid != pid


def test_daemon_json_of_the_host_that_is_damaged_is_told_by_name(paths: Paths) -> None:
    paths.config.mkdir(parents=True)
    paths.engine_config.write_bytes(b"\xff\xfe no text")
    for arguments in (["config", "get"], ["config", "set", "debug", "true"]):
        assert_sentence(moorage(*arguments), 2, f"{paths.engine_config} cannot be read", "remove it")
    assert moorage("status").returncode == 3
