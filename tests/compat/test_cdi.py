"""Devices by CDI: `--device vendor.com/class=name`, from specifications in JSON and YAML."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox

pytestmark = pytest.mark.root

SOUND = """
# as vendors' tools write it
cdiVersion: "0.6.0"
kind: example.com/sound
containerEdits:
  env:
  - SOUND=all of them
devices:
- name: card
  containerEdits:
    env: ["CARD=1", 'QUOTED=it''s']
    deviceNodes:
    - path: /dev/sound/zero
      hostPath: /dev/zero
      permissions: rw
    additionalGids: [4242]
    hooks:
    - hookName: createRuntime
      path: /bin/sh
      args:
      - sh
      - -c
      - touch HOOK
- name: "0"
  containerEdits: {"env": ["CARD=0"]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Specifications: one kind in YAML, one in JSON, and one that is damaged."""
    made = tmp_path_factory.mktemp("cdi")
    (made / "sound.yaml").write_text(SOUND.replace("HOOK", str(made / "hook-ran")))
    (made / "shared").mkdir()
    (made / "shared/file").write_text("from the host")
    edits = {"mounts": [{"hostPath": str(made / "shared"), "containerPath": "/shared", "options": ["ro", "bind"]}]}
    disk = {"cdiVersion": "0.5.0", "kind": "example.com/disk", "devices": [{"name": "a", "containerEdits": edits}]}
    (made / "disk.json").write_text(json.dumps(disk))
    (made / "damaged.yaml").write_text("cdiVersion: [")
    return made


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Moored]:
    with Sandbox() as sandbox:
        moored = Moored(sandbox, ["--cdi-spec-dir", str(folder), "--cdi-spec-dir", "/nowhere/cdi"])
        moored.start()
        try:
            moored.docker("load", "-i", str(busybox_archive()))
            yield moored
        finally:
            moored.kill()
            print(moored.log())


def test_a_device_brings_nodes_mounts_variables_groups_and_hooks(daemon: Moored, folder: Path) -> None:
    command = 'echo "$SOUND, $CARD, $QUOTED"; id -G; cat /shared/file; echo; head -c 3 /dev/sound/zero | wc -c'
    devices = ("--device", "example.com/sound=card", "--device", "example.com/disk=a")
    daemon.docker("run", "--name", "player", *devices, "busybox", "sh", "-c", command)
    assert daemon.docker("logs", "player").splitlines() == ["all of them, 1, it's", "0 10 4242", "from the host", "3"]
    assert (folder / "hook-ran").exists()
    request = json.loads(daemon.docker("inspect", "-f", "{{json .HostConfig.DeviceRequests}}", "player"))[0]
    assert request["Driver"] == "cdi" and request["DeviceIDs"] == ["example.com/sound=card", "example.com/disk=a"]
    assert request["Capabilities"] is None and request["Options"] is None
    done = daemon.docker_run("run", "--rm", *devices, "busybox", "touch", "/shared/file")
    assert "Read-only file system" in done.stderr
    daemon.docker("rm", "player")


def test_info_names_folders_and_devices_and_the_log_what_is_wrong_with_a_file(daemon: Moored, folder: Path) -> None:
    info = daemon.api.get("/info").json
    assert info["CDISpecDirs"] == [str(folder), "/nowhere/cdi"]
    assert [each["ID"] for each in info["DiscoveredDevices"]] == [
        "example.com/disk=a", "example.com/sound=0", "example.com/sound=card",
    ]  # fmt: skip
    assert "damaged.yaml is left out: line 1: [ is not read here" in daemon.log()


def test_a_device_that_is_not_specified_fails_the_start_in_dockerds_words(daemon: Moored) -> None:
    done = daemon.docker_run("run", "--rm", "--device", "example.com/sound=none", "busybox", "true")
    assert "CDI device injection failed: unresolvable CDI devices example.com/sound=none" in done.stderr
    gpus = daemon.docker_run("run", "--rm", "--gpus", "all", "busybox", "true")
    assert 'could not select device driver "" with capabilities: [[gpu]]' in gpus.stderr
