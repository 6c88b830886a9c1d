"""The code of all modules that the daemon imports, in one file of the image beside this module.

Importing is most of what a start of the virtual machine takes. `python -m moorage_guest.agent.precompiled FILE` records, when
an image is built, what `used` then need not do: look for five hundred files and read each (on an emulated processor a file
costs more than its content), compile the methods that `@dataclass` and attrs write as source text at every import (a quarter of
the time), and compile regular expressions (a fifteenth), which Python does in Python. Texts of annotations are left as they are
until somebody evaluates them. Without the file, with that of another Python, or for what is not in it, all is done as ever.
"""

import builtins
import collections
import contextlib
import dataclasses
import hashlib
import importlib.util
import marshal
import mmap
import re
import struct
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
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

_COMPILER = vars(re)["_compiler"]  # what the public functions of `re` call
_sre = _COMPILER._sre

# Before everything else: the Python and its regular expressions that can use the file, and the length of the index.
_HEADER = struct.Struct("<4sII")
_SRE = _sre.MAGIC << 4 | _sre.CODESIZE

# A function's first constant is its docstring (Python 3.13).
_HAS_DOCSTRING = 0x4000000

_Place = tuple[int, int]  # begin and end in what follows the index
_Module = tuple[str, bool, _Place]  # path, whether it is a package, code
_Index = tuple[dict[str, _Module], dict[bytes, _Place], dict[bytes, _Place]]  # modules, texts, regular expressions


@contextlib.contextmanager
def used(file: Path = FILE) -> Iterator[None]:
    """Import from `file` inside the block what is in it. One thread does so at a time."""
    (modules, texts, patterns), content = _read(file)
    compile_pattern: Callable[..., Any] = _COMPILER.compile

    def code(source: Any, name: str, mode: str) -> Any:
        place = texts.get(_key(source, name, mode)) if isinstance(source, str) else None
        return source if place is None else marshal.loads(content[place[0] : place[1]])

    def pattern(source: Any, flags: int = 0) -> Any:
        place = patterns.get(_key(source, int(flags))) if isinstance(source, str | bytes) else None
        if place is None:
            return compile_pattern(source, flags)
        return _sre.compile(source, *marshal.loads(content[place[0] : place[1]]))

    if not modules:
        yield
        return
    finder = _Finder(modules, content)
    sys.meta_path.insert(0, finder)
    try:
        with _instead(code), _hidden(_COMPILER, "compile", pattern), _hidden(typing, "compile", _as_text):
            yield
    finally:
        sys.meta_path.remove(finder)


def record(file: Path, roots: Sequence[str] = ()) -> int:
    """Import the daemon and write what that took to `file`; return the number of modules.

    For a process of its own: what has been imported before is not seen. Each of `roots` will be `/` where it is used.
    """
    codes: dict[bytes, CodeType] = {}
    compiled: dict[bytes, tuple[Any, ...]] = {}
    compile_pattern: Callable[..., Any] = _COMPILER.compile

    def code(source: Any, name: str, mode: str) -> Any:
        if isinstance(source, str):
            key = _key(source, name, mode)
            codes[key] = source = compile(source, name, mode, dont_inherit=True)
        return source

    def pattern(source: Any, flags: int = 0) -> Any:
        seen: list[tuple[Any, ...]] = []

        def compile_code(*arguments: Any) -> Any:
            seen.append(arguments)
            return _sre.compile(*arguments)

        with _hidden(_COMPILER, "_sre", _Instead(_sre, compile=compile_code)):
            result = compile_pattern(source, flags)
        if isinstance(source, str | bytes) and len(seen) == 1 and seen[0][0] == source:
            _, own, code, *rest = seen[0]
            compiled[_key(source, int(flags))] = int(own), [int(word) for word in code], *rest
        return result

    with _instead(code), _hidden(_COMPILER, "compile", pattern):
        import_daemon()
    content = bytearray()

    def add(data: bytes) -> _Place:
        content.extend(data)
        return len(content) - len(data), len(content)

    modules: dict[str, _Module] = {}
    for name, module in sorted(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is None or spec.name != name or not isinstance(spec.loader, SourceFileLoader):
            continue
        if spec.origin is not None and spec.cached is not None:
            path = spec.origin
            for root in roots:
                path = path.removeprefix(root)
            stored = _stored(Path(spec.cached))
            whole: CodeType | None = marshal.loads(stored) if stored else spec.loader.get_code(name)
            assert whole is not None
            modules[name] = path, spec.submodule_search_locations is not None, add(marshal.dumps(_bare(whole)))
    texts = {key: add(marshal.dumps(code)) for key, code in sorted(codes.items())}
    patterns = {key: add(marshal.dumps(arguments)) for key, arguments in sorted(compiled.items())}
    index = marshal.dumps((modules, texts, patterns))
    file.write_bytes(_HEADER.pack(importlib.util.MAGIC_NUMBER, _SRE, len(index)) + index + content)
    return len(modules)


def _bare(code: CodeType) -> CodeType:
    """Return the code without its functions' docstrings, which nobody reads in the guest."""
    constants = tuple(_bare(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    if sys.version_info >= (3, 13) and code.co_flags & _HAS_DOCSTRING:
        return code.replace(co_consts=(None, *constants[1:]), co_flags=code.co_flags & ~_HAS_DOCSTRING)
    return code.replace(co_consts=constants)


def _as_text(text: str, _name: str, _mode: str) -> str:
    """What `compile` is to a forward reference: it keeps the text, which `eval` takes as well."""
    return text


def _key(*what: object) -> bytes:
    return hashlib.blake2b(repr(what).encode(), digest_size=16).digest()


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
        folder, _, file = origin.rpartition("/")
        spec = ModuleSpec(fullname, loader, origin=origin, is_package=package)
        spec.has_location = True
        spec.cached = f"{folder}/__pycache__/{file.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
        if package:
            spec.submodule_search_locations = [folder]
        return spec


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


def _read(file: Path) -> tuple[_Index, memoryview]:
    """Return the index and, mapped rather than read so that nothing of it stays in the daemon's memory, the code."""
    nothing: tuple[_Index, memoryview] = ({}, {}, {}), memoryview(b"")
    try:
        with file.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, ValueError):
        return nothing
    if len(data) < _HEADER.size:
        return nothing
    magic, sre, size = _HEADER.unpack(data[: _HEADER.size])
    if magic != importlib.util.MAGIC_NUMBER or sre != _SRE:
        return nothing
    begin = _HEADER.size + size
    return marshal.loads(data[_HEADER.size : begin]), data[begin:]


class _Instead:
    """An object with some of its attributes replaced."""

    def __init__(self, whole: object, **instead: object) -> None:
        self._whole = whole
        vars(self).update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


@contextlib.contextmanager
def _hidden(module: ModuleType, name: str, by: object) -> Iterator[None]:
    """A name in a module's own name space hides what stands there, or the built-in function."""
    names = vars(module)
    before = names.get(name, names)
    names[name] = by
    try:
        yield
    finally:
        if before is names:
            del names[name]
        else:
            names[name] = before


@contextlib.contextmanager
def _instead(code: Callable[[Any, str, str], Any]) -> Iterator[None]:
    """Wherever modules write source text to run it, `code` may give the code for it."""

    def run(source: Any, *names: Any) -> None:
        builtins.exec(code(source, "<string>", "exec"), *names)

    def value(source: Any, *names: Any) -> Any:
        return builtins.eval(code(source, "<string>", "eval"), *names)

    compile_text = builtins.compile

    def compiled(source: Any, *more: Any, **named: Any) -> Any:
        if len(more) == 2 and not named and sys._getframe(1).f_globals.get("__name__") == "attr._make":
            source = code(source, *more)
        return source if isinstance(source, CodeType) else compile_text(source, *more, **named)

    with (
        _hidden(dataclasses, "exec", run),
        _hidden(collections, "eval", value),
        _hidden(builtins, "compile", compiled),
    ):
        yield


if __name__ == "__main__":
    sys.stdout.write(f"{record(Path(sys.argv[1]), sys.argv[2:])} modules\n")
