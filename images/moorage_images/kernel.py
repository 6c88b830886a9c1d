"""Kernel modules: those the recipe names and what they depend on, uncompressed, with the tables modprobe reads.

The tables are written here rather than by depmod, so that the build machine needs no kmod.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moorage_images import elf
from moorage_images.errors import ImageError
from moorage_images.recipe import Recipe

_SIGNATURE_END = b"~Module signature appended~\n"
_SIGNATURE_INFO = 12  # struct module_signature; its last four bytes are the length of the signature before it


@dataclass
class Module:
    """A loadable module of the kernel package."""

    name: str
    path: str
    source: Path
    depends: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    soft: list[str] = field(default_factory=list)
    data: bytes = b""


class ModuleTree:
    """The modules of one unpacked kernel package (`usr/lib/modules/RELEASE`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.release = folder.name
        self._modules: dict[str, Module] = {}
        for path in sorted((folder / "kernel").rglob("*.ko*")):
            name = canonical(path.name.split(".ko")[0])
            relative = str(path.relative_to(folder)).removesuffix(".xz")
            self._modules[name] = Module(name, relative, path)
        builtin = (folder / "modules.builtin").read_text().split()
        self._builtin = {canonical(Path(line).name.split(".ko")[0]) for line in builtin}

    def load(self, name: str) -> Module | None:
        """The module with its tables read; None when it is part of the kernel. Raises ImageError if there is none."""
        module = self._modules.get(canonical(name))
        if module is None:
            if canonical(name) in self._builtin:
                return None
            raise ImageError(f"the kernel {self.release} has no module {name}", hint="correct the recipe")
        if not module.data:
            raw = module.source.read_bytes()
            module.data = unsigned(lzma.decompress(raw) if module.source.suffix == ".xz" else raw)
            info = elf.modinfo(module.data)
            module.depends = [canonical(d) for entry in info.get("depends", []) for d in entry.split(",") if d]
            module.aliases = info.get("alias", [])
            module.soft = [word for entry in info.get("softdep", []) for word in _pre(entry)]
        return module

    def closure(self, names: Iterable[str]) -> list[Module]:
        """The modules and all they need, each after what it needs; parts of the kernel itself are left out."""
        ordered: dict[str, Module] = {}

        def visit(name: str, soft: bool, above: tuple[str, ...]) -> None:
            if canonical(name) in ordered or canonical(name) in above:
                return
            if soft and canonical(name) not in self._modules:
                return
            module = self.load(name)
            if module is None:
                return
            for dependency in module.soft:
                visit(dependency, True, (*above, module.name))
            for dependency in module.depends:
                visit(dependency, False, (*above, module.name))
            ordered[module.name] = module

        for name in names:
            visit(name, False, ())
        return list(ordered.values())


def install(tree: ModuleTree, recipe: Recipe, root: Path) -> list[Module]:
    """Write the recipe's modules, modprobe's tables and the lists for the boot scripts below `root`."""
    modules = tree.closure(recipe.modules.wanted)
    base = root / "usr/lib/modules" / tree.release
    by_name = {module.name: module for module in modules}
    dependencies, aliases = [], []
    for module in modules:
        target = base / module.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(module.data)
        needs = [m.path for m in reversed(tree.closure(module.depends)) if m.name in by_name]
        dependencies.append(f"{module.path}: {' '.join(needs)}".rstrip())
        aliases += [f"alias {alias} {module.name}" for alias in module.aliases]
    (base / "modules.dep").write_text("\n".join(dependencies) + "\n")
    (base / "modules.alias").write_text("\n".join(aliases) + "\n")
    (base / "modules.symbols").write_text("")
    (base / "modules.builtin").write_text((tree.folder / "modules.builtin").read_text())
    lists = root / "usr/lib/moorage/modules"
    lists.mkdir(parents=True, exist_ok=True)
    for moment in ("disk", "host", "network", "late"):
        names = [m.name for name in getattr(recipe.modules, moment) if (m := tree.load(name)) is not None]
        (lists / moment).write_text("\n".join(names) + "\n")
    return modules


def unsigned(data: bytes) -> bytes:
    """A module without the signature appended to it.

    Debian's kernel does not insist on one, the image as a whole is checked by the host, and verifying forty signatures costs an
    emulated processor more than everything else that loading does.
    """
    if not data.endswith(_SIGNATURE_END):
        return data
    end = len(data) - len(_SIGNATURE_END)
    length = int.from_bytes(data[end - 4 : end], "big")
    return data[: end - _SIGNATURE_INFO - length]


def canonical(name: str) -> str:
    """A module's name as the kernel writes it."""
    return name.replace("-", "_")


def _pre(entry: str) -> list[str]:
    words, before = [], False
    for word in entry.split():
        if word.endswith(":"):
            before = word == "pre:"
        elif before:
            words.append(word)
    return words
