"""The code of all modules that the daemon imports, in one file of the image beside this module.

Importing is most of what a start of the virtual machine takes. `python -m moorage_guest.agent.precompiled FILE` records, when
an image is built, what `used` then need not do: look for five hundred files and read each (on an emulated processor a file
costs more than its content), and compile the methods that `@dataclass` writes as source text at every import (a quarter of the
time). Without the file, with that of another Python, or for what is not in it, all is done as ever.
"""

import builtins
import contextlib
import dataclasses
import hashlib
import importlib.util
import marshal
import mmap
import struct
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from moorage_guest.agent.imports import import_daemon

FILE = Path(__file__).with_name("precompiled.bin")

# A .pyc file begins with 16 bytes, of which the second four say how it is checked against its source (PEP 552).
_PYC_HEADER = 16
_UNCHECKED_HASH = 1

# Before everything else: the Python that can use the file, and the length of the index.
_HEADER = struct.Struct("<4sI")

_Place = tuple[int, int]  # begin and end in what follows the index
_Module = tuple[str, bool, _Place]  # path, whether it is a package, code


@contextlib.contextmanager
def used(file: Path = FILE) -> Iterator[None]:
    """Import from `file` inside the block what is in it."""
    index, content = _read(file)
    names, texts = index

    def run(source: Any, *names: Any) -> None:
        place = texts.get(_key(source)) if isinstance(source, str) else None
        builtins.exec(source if place is None else marshal.loads(content[place[0] : place[1]]), *names)

    finder = _Finder(names, content)
    sys.meta_path.insert(0, finder)
    try:
        with _instead_of_exec(run):
            yield
    finally:
        sys.meta_path.remove(finder)


def record(file: Path, roots: Sequence[str] = ()) -> int:
    """Import the daemon and write what that took to `file`; return the number of modules.

    For a process of its own: what has been imported before is not seen. Each of `roots` will be `/` where it is used.
    """
    codes: dict[bytes, CodeType] = {}

    def run(source: Any, *names: Any) -> None:
        if isinstance(source, str):
            codes[_key(source)] = source = compile(source, "<string>", "exec", dont_inherit=True)
        builtins.exec(source, *names)

    with _instead_of_exec(run):
        import_daemon()
    content = bytearray()

    def add(code: bytes) -> _Place:
        content.extend(code)
        return len(content) - len(code), len(content)

    modules: dict[str, _Module] = {}
    for name, module in sorted(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or spec.name != name or not isinstance(spec.loader, SourceFileLoader):
            continue
        if spec.origin is not None and spec.cached is not None:
            path = spec.origin
            for root in roots:
                path = path.removeprefix(root)
            code = _stored(Path(spec.cached)) or marshal.dumps(spec.loader.get_code(name))
            modules[name] = path, spec.submodule_search_locations is not None, add(code)
    texts = {key: add(marshal.dumps(code)) for key, code in sorted(codes.items())}
    index = marshal.dumps((modules, texts))
    file.write_bytes(_HEADER.pack(importlib.util.MAGIC_NUMBER, len(index)) + index + content)
    return len(modules)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _stored(compiled: Path) -> bytes:
    """Return the code in a .pyc file that is valid whatever its source, as an image has them; else nothing."""
    try:
        data = compiled.read_bytes()
    except OSError:
        return b""
    return data[_PYC_HEADER:] if int.from_bytes(data[4:8], "little") == _UNCHECKED_HASH else b""


class _Finder(MetaPathFinder):
    """Finds what was recorded, as it would be found in its place on the disk."""

    def __init__(self, modules: dict[str, _Module], content: memoryview) -> None:
        self._modules = modules
        self._content = content

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None, /
    ) -> ModuleSpec | None:
        recorded = self._modules.get(fullname)
        if recorded is None:
            return None
        origin, package, (begin, end) = recorded
        loader = _Loader(fullname, origin, self._content[begin:end])
        where = [origin.rpartition("/")[0]] if package else None
        return importlib.util.spec_from_file_location(fullname, origin, loader=loader, submodule_search_locations=where)


class _Loader(SourceFileLoader):
    """Differs from its base in where the code comes from, the first time."""

    def __init__(self, fullname: str, path: str, code: memoryview) -> None:
        super().__init__(fullname, path)
        self._code: memoryview | None = code

    def get_code(self, fullname: str) -> CodeType | None:
        recorded, self._code = self._code, None
        if recorded is None:
            return super().get_code(fullname)
        code: CodeType = marshal.loads(recorded)
        return code


def _read(file: Path) -> tuple[tuple[dict[str, _Module], dict[bytes, _Place]], memoryview]:
    """Return the index and, mapped rather than read so that nothing of it stays in the daemon's memory, the code."""
    nothing: tuple[dict[str, _Module], dict[bytes, _Place]] = {}, {}
    try:
        with file.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return nothing, memoryview(b"")
    if len(data) < _HEADER.size:
        return nothing, memoryview(b"")
    magic, size = _HEADER.unpack(data[: _HEADER.size])
    if magic != importlib.util.MAGIC_NUMBER:
        return nothing, memoryview(b"")
    begin = _HEADER.size + size
    return marshal.loads(data[_HEADER.size : begin]), data[begin:]


@contextlib.contextmanager
def _instead_of_exec(run: Any) -> Iterator[None]:
    """The name `exec` in dataclasses' own name space hides the built-in function."""
    vars(dataclasses)["exec"] = run
    try:
        yield
    finally:
        del vars(dataclasses)["exec"]


if __name__ == "__main__":
    sys.stdout.write(f"{record(Path(sys.argv[1]), sys.argv[2:])} modules\n")
