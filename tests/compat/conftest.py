"""One daemon for a test module (`moored`), one of its own where a test breaks it (`fresh_moored`)."""

from collections.abc import Iterator

import pytest

from tests.support.images import busybox_archive
from tests.support.moored import Moored, running_moored


@pytest.fixture(scope="module")
def moored() -> Iterator[Moored]:
    """A running daemon with the busybox image, shared by the module's tests."""
    with running_moored() as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon


@pytest.fixture
def fresh_moored() -> Iterator[Moored]:
    """A running daemon with the busybox image for one test alone."""
    with running_moored() as daemon:
        daemon.docker("load", "-i", str(busybox_archive()))
        yield daemon
