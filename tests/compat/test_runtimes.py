"""Further OCI runtimes, as dockerd's users add them: by file, by flag, as the default, and taken away again."""

import json
import shutil
import signal
from pathlib import Path

from tests.support.images import busybox_archive
from tests.support.moored import Moored, Sandbox, running_moored, wait_for


def _recorder(folder: Path) -> Path:
    """A runtime that writes down what it is asked before crun does it."""
    program = folder / "recorder"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\nshift\nexec {shutil.which("crun")} "$@"\n')
    program.chmod(0o755)
    return program


def test_a_container_runs_with_the_runtime_it_asks_for_and_all_else_goes_to_it_too() -> None:
    with Sandbox() as sandbox:
        moored = Moored(sandbox)
        program = _recorder(sandbox.root)
        moored.config_file.write_text(
            json.dumps(
                {"runtimes": {"own": {"path": str(program), "runtimeArgs": ["--loud"]}, "oci": {"path": "runc"}}}
            )
        )
        moored.start()
        moored.docker("load", "-i", str(busybox_archive()))
        assert moored.docker("run", "--rm", "--runtime=oci", "busybox", "echo", "fine") == "fine"
        asked = sandbox.root / "asked"
        assert not asked.exists()

        moored.docker("run", "-d", "--name", "one", "--runtime=own", "busybox", "sleep", "1000")
        assert moored.docker("exec", "one", "echo", "within") == "within"
        moored.docker("pause", "one")
        moored.docker("unpause", "one")
        moored.kill()
        moored.start()
        moored.docker("kill", "one")
        wait_for("the container to end", lambda: moored.docker("ps", "-q") == "")
        moored.docker("rm", "one")
        lines = asked.read_text().splitlines()
        assert all(line.startswith("--loud ") for line in lines)
        for word in ("run", "exec", "pause", "resume", "kill", "delete"):
            assert any(f" {word} " in line for line in lines), word
        info = moored.api.get("/info").json["Runtimes"]
        assert info["own"] == {"path": str(program), "runtimeArgs": ["--loud"]}
        assert {"runc", "crun", "oci"} <= set(info)
        moored.stop()


def test_a_reload_takes_runtimes_away_and_a_reserved_name_changes_nothing(moored: Moored) -> None:
    moored.config_file.write_text(
        json.dumps({"runtimes": {"oci": {"path": "runc"}, "vm": {"path": "/opt/vm-manager"}}})
    )
    moored.signal(signal.SIGHUP)
    wait_for("the runtimes", lambda: "oci" in moored.api.get("/info").json["Runtimes"])
    assert moored.docker("run", "--name", "kept", "--runtime=oci", "busybox", "echo", "fine") == "fine"
    missing = moored.docker_run("run", "--rm", "--runtime=vm", "busybox", "true")
    assert missing.returncode != 0 and "stat /opt/vm-manager: no such file or directory" in missing.stderr

    moored.config_file.write_text(json.dumps({"runtimes": {}}))
    moored.signal(signal.SIGHUP)
    wait_for("no runtimes", lambda: "oci" not in moored.api.get("/info").json["Runtimes"])
    for words in (["run", "--runtime=oci", "busybox", "true"], ["start", "kept"]):
        assert "unknown or invalid runtime name: oci" in moored.docker_run(*words).stderr

    moored.config_file.write_text(json.dumps({"runtimes": {"runc": {"path": "mine"}}}))
    moored.signal(signal.SIGHUP)
    wait_for("the refusal", lambda: "runtime name 'runc' is reserved" in moored.log())


def test_flag_and_file_add_runtimes_together_and_one_may_be_the_default() -> None:
    with running_moored("--add-runtime", "vm=/opt/vm-manager", "--default-runtime=vm") as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        assert "/opt/vm-manager: no such file or directory" in moored.docker_run("run", "busybox", "true").stderr
        assert moored.docker("run", "--rm", "--runtime=runc", "busybox", "echo", "fine") == "fine"
        moored.config_file.write_text(json.dumps({"runtimes": {"other": {"path": "crun"}}}))
        moored.signal(signal.SIGHUP)
        wait_for("both", lambda: {"vm", "other"} <= set(moored.api.get("/info").json["Runtimes"]))
