"""What an image keeps so that the daemon is imported faster gives the same daemon."""

import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from moorage_guest.agent import precompiled

IMPORTED = """
import builtins, collections, dataclasses, gc, re, sys, typing
from pathlib import Path
parse, parsed = re._parser.parse, []
re._parser.parse = lambda *arguments: parsed.append(arguments) or parse(*arguments)
def hidden():
    return [vars(each).get(name) for each in (builtins, collections, dataclasses, re._compiler, typing) for name in NAMES]
NAMES = ("compile", "eval", "exec", "_sre")
names = hidden()
from moorage_guest.agent import precompiled
from moorage_guest.agent.imports import import_daemon
before = len(parsed)
with precompiled.used(Path(sys.argv[1])):
    import_daemon()
assert hidden() == names, "what was hidden is back"
count = len(parsed) - before
"""

PATTERNS = """
patterns = [each for each in gc.get_objects() if isinstance(each, re.Pattern)]
patterns += [value for module in sys.modules.values() for value in vars(module).values() if isinstance(value, re.Pattern)]
assert len(patterns) > 50
for each in patterns:
    fresh = re._compiler.compile(each.pattern, each.flags)
    assert (fresh, fresh.groups, fresh.groupindex) == (each, each.groups, each.groupindex), each
print(count)
"""

OTHERS = """
import attr, aiohttp.helpers, pydantic_core.core_schema as schema
from moorage_guest.agent.imports import build_models
from moorage_guest.api.types import HostConfig
hints = typing.get_type_hints(schema.ComputedField)
assert hints["property_name"] is str and hints["alias"] is str, hints
proxy = aiohttp.helpers.ProxyInfo(proxy="a", proxy_auth=None)
assert proxy == aiohttp.helpers.ProxyInfo("a", None) and "proxy='a'" in repr(proxy)
assert aiohttp.helpers.parse_mimetype("text/html; charset=x").subtype == "html"
from urllib.parse import urlsplit
assert urlsplit("http://a/b?c")._replace(path="/d").geturl() == "http://a/d?c"
build_models()
assert HostConfig.model_validate({"Memory": 3}).memory == 3
print(count)
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "precompiled.bin"
    subprocess.run([sys.executable, "-m", "moorage_guest.agent.precompiled", str(file)], check=True, timeout=120)
    return file


def run(script: str, file: Path) -> str:
    command = [sys.executable, "-c", IMPORTED + script, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_regular_expressions_are_the_same_and_none_is_compiled(recorded: Path) -> None:
    assert run(PATTERNS, recorded) == "0"


def test_generated_classes_and_annotations_work_as_ever(recorded: Path) -> None:
    assert run(OTHERS, recorded) == "0"


@pytest.mark.parametrize("fault", ["other regular expressions", "other Python", "cut short", "empty", "missing"])
def test_file_that_does_not_fit_is_not_used(recorded: Path, tmp_path: Path, fault: str) -> None:
    content = recorded.read_bytes()
    magic, sre = struct.unpack_from("<4sI", content)
    assert magic == importlib.util.MAGIC_NUMBER
    file = tmp_path / "precompiled.bin"
    heads = {
        "other regular expressions": struct.pack("<4sI", magic, sre + 16),
        "other Python": b"\0\0\r\n" + content[4:8],
    }
    if fault in heads:
        file.write_bytes(heads[fault] + content[8:])
    elif fault != "missing":
        file.write_bytes(content[: 8 if fault == "cut short" else 0])
    modules = set(sys.meta_path)
    with precompiled.used(file):
        assert set(sys.meta_path) == modules
