"""The hold: where the guest waits while the host saves it, so that later starts go on from there instead of booting.

What every boot does alike is done by then: kernel, network, sshd, the imports of agent and zygote. What differs is not: the
data disk has not been mounted, no daemon runs, and nobody has asked for the boot's id. The host may save the held machine and
restore it any number of times; each time it releases it once, with the time and with randomness that no other start has had.
"""

import binascii
import fcntl
import gc
import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from moorage_guest.agent import bootlog
from moorage_guest.agent.forking import spawn_program
from moorage_guest.agent.host import Answer, Fail, HostServer
from moorage_guest.agent.rehearsal import rehearse
from moorage_guest.shim import wire
from moorage_guest.shim.connection import Refused
from moorage_guest.shim.loop import READ, Loop

#: Below the exec root: what init knows a held guest by. Made by the boot when the kernel's command line asks for it.
MARK = "hold"

#: Seconds after which the guest is held without its zygote; importing takes five on an emulated processor.
PATIENCE = 120.0

#: Least bytes of randomness that a release brings.
LEAST_RANDOM = 32

# linux/random.h: put bytes into the pool and count them, make the generator's key anew from the pool.
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def wait_for_release(exec_root: Path, program: str) -> bool:
    """Serve agent.sock until the host releases the guest and `program` has mounted the data disk; whether it could.

    Blocks for as long as that takes. The shims' code has been rehearsed then.
    """
    return Hold(exec_root, program).run()


class Hold:
    """The held agent. agent.sock is there once the zygote has imported everything, too: then there is nothing left to wait for."""

    def __init__(self, exec_root: Path, program: str) -> None:
        self._exec_root = exec_root
        self._program = program
        self._loop = Loop(lambda text: bootlog.tell(f"hold: {text}"))
        self._zygote: list[socket.socket] = []
        self._releasing = False
        self._mounted = False
        # Where the zygote connects when it has imported everything; it comes again to the agent that follows.
        self._listener = wire.listen(exec_root / "supervise.sock", socket.SOCK_SEQPACKET)
        self._loop.watch(self._listener.fileno(), READ, self._zygote_came)
        self._host: HostServer | None = None

    def run(self) -> bool:
        """Serve until released."""
        rehearse(self._loop, self._exec_root)
        gc.collect()
        self._loop.later(PATIENCE, self._listen)
        self._loop.run()
        if self._host is not None:
            self._host.close()
        self._loop.unwatch(self._listener.fileno())
        for sock in (self._listener, *self._zygote):
            sock.close()
        self._loop.close()
        return self._mounted

    def _zygote_came(self, _ready: int) -> None:
        sock, _ = self._listener.accept()
        self._zygote.append(sock)
        self._loop.later(0, self._listen)

    def _listen(self) -> None:
        if self._host is None:
            methods = {"status": self._refuse, "release": self._release}
            self._host = HostServer(self._loop, self._exec_root / "agent.sock", methods, dict)
            bootlog.tell("held")

    def _refuse(self, _params: dict[str, Any], _answer: Answer, _fail: Fail) -> None:
        raise Refused("held", "the guest waits for its release")

    def _release(self, params: dict[str, Any], answer: Answer, fail: Fail) -> None:
        if self._releasing:
            raise Refused("held", "the guest is being released")
        random = binascii.a2b_base64(str(params["random"]), strict_mode=True)
        if len(random) < LEAST_RANDOM:
            raise ValueError(f"random has to be {LEAST_RANDOM} bytes at the least")
        time.clock_settime_ns(time.CLOCK_REALTIME, int(params["ns"]))
        reseed(random)
        self._releasing = True
        bootlog.tell("released")

        def ended(code: int) -> None:
            self._mounted = code == 0
            (self._exec_root / MARK).unlink(missing_ok=True)
            if self._mounted:
                answer({})
            else:
                fail("failed", "the data disk cannot be used; the console says why")
            self._loop.stop()

        output = os.open(os.environ.get(bootlog.VARIABLE, os.devnull), os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            self._loop.on_child(spawn_program([self._program], dict(os.environ), output), ended)
        finally:
            os.close(output)


def reseed(random: bytes) -> None:
    """Make the kernel's random numbers depend on `random`, from this call on. Needs root.

    A restored machine has the generator's state of the moment when it was saved: without this two starts could hand out the
    same numbers. Counting the bytes as entropy and asking for a new key at once leaves nothing to the kernel's own schedule.
    """
    device = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack(f"ii{len(random)}s", len(random) * 8, len(random), random))
        fcntl.ioctl(device, _RNDRESEEDCRNG)
    finally:
        os.close(device)
