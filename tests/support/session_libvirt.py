"""An ordinary user's machine, by libvirt's session daemon, which libvirt starts itself and which ends with the name space.

`tini python -m tests.support.session_libvirt` as that user, under `unshare --pid --fork --kill-child --mount-proc`; what was seen
goes to stdout as one JSON object.
"""

from __future__ import annotations

import json
import os
import sys

from moorage_host.client import Client
from moorage_host.paths import user_paths

from tests.support.host import user_home
from tests.support.system_libvirt import owner_of_qemu
from tests.support.vm import image_folder, wait_saved


def main() -> None:
    """Start a machine, stop it, start it from its saved state, stop and delete it."""
    with user_home() as home:
        for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            folder = home / name.lower()
            folder.mkdir(mode=0o700)
            os.environ[name] = str(folder)
        client = Client(user_paths())
        client.change_settings(image=str(image_folder()), accelerator="tcg", memory_mib=1024, cpus=1, disk_gib=4)
        started = client.start()
        seen: dict[str, object] = {
            "uri": started.libvirt_uri,
            "state": started.state,
            "user": os.getuid(),
            "qemu_user": owner_of_qemu(json.loads(user_paths().machine_record.read_text())["uuid"]),
        }
        client.stop()
        wait_saved(user_paths())
        client.start()
        seen["restored"] = "saved here; restored" in user_paths().console_log.read_text(errors="replace")
        client.stop()
        seen["stopped"] = client.status().state
        client.delete()
        client.stop_backend()
    json.dump(seen, sys.stdout)


if __name__ == "__main__":
    main()
