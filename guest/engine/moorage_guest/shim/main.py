"""A shim's life after the agent has forked it: forget the agent, serve one container, end with it."""

import os
import socket
from collections.abc import Callable

from moorage_guest.shim import kernel
from moorage_guest.shim.container import Spec
from moorage_guest.shim.loop import Loop
from moorage_guest.shim.server import Server


def serve(listener: socket.socket, spec: Spec, runtime_root: str, folder: str, log: Callable[[str], None]) -> None:
    """Run until shut down. The process must have been forked for this, and its other descriptors closed."""
    os.setsid()
    os.chdir(folder)
    kernel.become_subreaper()
    kernel.set_name("moorage-shim")
    loop = Loop(log)
    Server(loop, listener, spec, runtime_root, folder)
    loop.run()
