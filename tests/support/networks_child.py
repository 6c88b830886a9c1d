"""A daemon's networks in a process that gets killed: starts and ends containers until it is, and notes what runs.

Arguments: the test's folder, and a seed. A file below ``live/`` stands for a container that runs.
"""

import asyncio
import contextlib
import random
import socket
import sys
from pathlib import Path

from moorage_guest.api.types import EndpointSettings, HostConfig
from moorage_guest.errors import Conflict, Forbidden, NotFound
from moorage_guest.events import EventBus
from moorage_guest.net.config import NetConfig
from moorage_guest.net.networks import Networks
from moorage_guest.net.requests import NetworkCreate
from moorage_guest.net.sandboxes import SandboxRequest
from moorage_guest.paths import DataRoot, ExecRoot
from moorage_guest.store import Store


async def run(root: Path, seed: int) -> None:
    """Work until killed."""
    choose = random.Random(seed)
    exec_root, live = ExecRoot(root / "exec"), root / "live"

    async def netd() -> Path:
        path = exec_root.net / "netd.sock"
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            probe.connect(str(path))
        return path

    networks = Networks(
        Store(root / "data" / "moorage.db"),
        EventBus(),
        DataRoot(root / "data"),
        exec_root,
        NetConfig(resolv_conf=root / "none"),
        netd,
    )
    await networks.start({path.name for path in live.iterdir()})
    while True:
        number = choose.randrange(6)
        container = f"{number:x}" * 64
        here = live / container
        if here.exists():
            if choose.random() < 0.3:
                await networks.rename(container, f"name{number}")
            here.unlink()
            await networks.release(container)
            continue
        network = f"net{number % 3}"
        if choose.random() < 0.2:
            with contextlib.suppress(NotFound, Forbidden):
                await networks.remove(network)
        with contextlib.suppress(Conflict):
            await networks.create(NetworkCreate(name=network))
        host = HostConfig.model_validate(
            {"NetworkMode": network, "PortBindings": {"80/tcp": [{"HostPort": str(8000 + number)}]}}
        )
        await networks.allocate(SandboxRequest(container, f"name{number}", "host", host, {network: EndpointSettings()}))
        here.touch()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
