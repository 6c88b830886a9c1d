"""What a daemon gets from systemd and tells it, when systemd starts it: listening sockets and readiness.

Both are plain protocols of the environment (sd_listen_fds(3), sd_notify(3)); without it nothing happens here.
"""

import os
import socket

#: The first descriptor that is passed on.
FIRST = 3


def take_sockets() -> dict[int, socket.socket]:
    """Return the sockets that were passed to this process, by descriptor; none of its children inherits them.

    Only the first call finds them, since what says so is taken out of the environment.
    """
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    found = {}
    for number in range(FIRST, FIRST + (int(count) if mine and count.isdigit() else 0)):
        os.set_inheritable(number, False)
        found[number] = socket.socket(fileno=number)
    return found


def notify(state: str) -> None:
    """Tell the service manager of a state ("READY=1"); quiet when there is none, or it does not listen."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.setblocking(False)
        try:
            out.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            out.send(state.encode())
        except OSError:
            pass  # a manager that is not there is no reason to fail
