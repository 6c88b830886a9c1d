"""Imports that wait, and what a daemon that idles therefore does not hold."""

import importlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import moorage_guest
import pytest
from moorage_contract.postponed import Postponed, postponed

#: Seldom needed and heavy: what pulls, pushes, builds, reads archives, or explains a mistake.
SELDOM = (
    "aiohttp.client", "aiohttp.connector", "difflib", "h2.connection", "hpack", "moorage_guest.buildkit.grpc",
    "moorage_guest.buildkit.session", "moorage_guest.images.build.steps", "moorage_guest.images.downloads",
    "pkg_resources", "tracemalloc", "unittest", "zstandard.backend_c",
)  # fmt: skip

IDLE = """
import sys
from moorage_guest.agent.imports import import_daemon
import_daemon()
from moorage_contract.postponed import Postponed
print(*(name for name, module in sys.modules.items() if type(module) is not Postponed))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def module(name: str) -> Any:
    return importlib.import_module(name)


def test_module_runs_when_a_name_of_it_is_first_used(folder: Path) -> None:
    (folder / "mo_late.py").write_text("import sys\nsys.mo_ran = getattr(sys, 'mo_ran', 0) + 1\nVALUE = 7\n")
    with postponed("mo_late"):
        late = module("mo_late")
    assert module("mo_late") is late and not hasattr(sys, "mo_ran")
    assert late.VALUE == 7
    assert type(late) is ModuleType and vars(sys)["mo_ran"] == 1
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        late.nothing  # noqa: B018
    del vars(sys)["mo_ran"]


def test_modules_of_a_postponed_package_are_imported_without_it(folder: Path) -> None:
    package = folder / "mo_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .heavy import WEIGHT\n__version__ = '3'\n")
    (package / "heavy.py").write_text("WEIGHT = 9\n")
    (package / "light.py").write_text("from . import __version__, lighter\n")
    (package / "lighter.py").write_text("")
    with postponed("mo_package", __version__="unknown"):
        light = module("mo_package.light")
    assert light.__version__ == "unknown" and "mo_package.heavy" not in sys.modules
    assert module("mo_package").WEIGHT == 9 and module("mo_package").__version__ == "3"


def test_module_that_fails_says_so_each_time_and_may_succeed_later(folder: Path) -> None:
    (folder / "mo_failing.py").write_text("import mo_absent\n")
    with postponed("mo_failing"):
        failing = module("mo_failing")
    for _ in range(2):
        with pytest.raises(ImportError, match="mo_absent"):
            failing.mo_absent  # noqa: B018
        assert type(failing) is Postponed
    (folder / "mo_absent.py").write_text("")
    importlib.invalidate_caches()
    assert failing.mo_absent.__name__ == "mo_absent"


def test_threads_that_use_a_module_at_once_run_it_once_and_wait_for_it(folder: Path) -> None:
    (folder / "mo_slow.py").write_text(
        "import sys, threading\nsys.mo_running.set()\nassert sys.mo_go.wait(60)\nsys.mo_runs.append(1)\nVALUE = 1\n"
    )
    running, go, runs = threading.Event(), threading.Event(), [0]
    vars(sys).update(mo_running=running, mo_go=go, mo_runs=runs)
    with postponed("mo_slow"):
        slow = module("mo_slow")
    values: list[int] = []
    threads = [threading.Thread(target=lambda: values.append(slow.VALUE)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert running.wait(60)
    go.set()
    for thread in threads:
        thread.join(60)
    assert values == [1, 1, 1, 1] and runs == [0, 1]
    for name in ("mo_running", "mo_go", "mo_runs"):
        delattr(sys, name)


def test_module_that_is_there_already_is_left_alone() -> None:
    with postponed("json"):
        pass
    assert type(sys.modules["json"]) is ModuleType


def test_module_that_does_not_exist_fails_where_it_is_imported() -> None:
    with pytest.raises(ModuleNotFoundError), postponed("mo_nowhere"):
        module("mo_nowhere")


def test_idle_daemon_holds_nothing_that_only_pulls_builds_or_archives_need() -> None:
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True, timeout=120)
    held = set(done.stdout.split())
    assert "moorage_guest.api.server" in held
    assert held.isdisjoint(SELDOM)
    assert len(held) < 600, "the daemon imports more than it did: import it where it is needed, or see postponed.py"


def test_aiohttp_is_imported_by_way_of_web_alone() -> None:
    root = Path(moorage_guest.__file__).parent
    users = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith(("import aiohttp", "from aiohttp"))
    }
    assert users == {"web.py"}, "import it from moorage_guest.web, or its client is loaded into every daemon"
