"""Carries out the instructions of one stage, each giving an image that the next builds on, or found in the cache."""

import asyncio
import codecs
import contextlib
import copy
import logging
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.idmap import SAME, IdMap
from moorage_guest.images import remote
from moorage_guest.images.archive import make_folders
from moorage_guest.images.build import changes
from moorage_guest.images.build.copying import place
from moorage_guest.images.build.dockerfile import Instruction, needs_buildkit, parse_line
from moorage_guest.images.build.options import BuildOptions
from moorage_guest.images.build.runner import RunStep, StepRunner
from moorage_guest.images.build.sources import FolderTree, Source, SourceTree, hash_of
from moorage_guest.images.build.words import Expansion, split_quoted
from moorage_guest.images.image import Image, LayerBlob
from moorage_guest.images.layers import Layers
from moorage_guest.images.store import Images
from moorage_guest.images.streams import finished
from moorage_guest.oci.users import resolve_user

log = logging.getLogger(__name__)

#: Arguments that may be given without ARG and never count for the cache.
PREDEFINED = frozenset(
    name
    for base in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (base, base.lower())
)

#: What of an image's configuration the next step inherits.
FIELDS = frozenset(
    {
        "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal",
        "ArgsEscaped", "Healthcheck", "OnBuild", "Shell",
    }
)  # fmt: skip

Emit = Callable[[str], None]


class StepFailed(EngineError):
    """A command of the Dockerfile ended with an error."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Workshop:
    """What all stages of a build share."""

    images: Images
    layers: Layers
    runner: StepRunner
    options: BuildOptions
    context: SourceTree
    emit: Emit
    owner: str
    stages: dict[str, Image | None] = field(default_factory=dict)
    """Finished stages by name and by number."""
    current: int = 0
    """Number of the stage at work."""
    used_args: set[str] = field(default_factory=set)
    find_image: Callable[[str, bool], Any] | None = None
    """Returns the image of a name, pulled if need be."""


class _Target(NamedTuple):
    """Where COPY and ADD put things, as it is written in the Dockerfile and as it is meant."""

    written: str
    path: str


@dataclass
class StageState:
    """One stage as it grows."""

    shop: Workshop
    image: Image | None
    config: dict[str, Any]
    global_args: Mapping[str, str]
    args: dict[str, str] = field(default_factory=dict)
    declared: set[str] = field(default_factory=set)
    cmd_set: bool = False
    broken: bool = False
    """A step was not in the cache: no later one is looked for."""
    author: str = ""

    # -- what the words of instructions stand for ---------------------------------------------------------------------

    def expansion(self, instruction: Instruction) -> Expansion:
        """Return what expands words here: arguments, and before them the environment."""
        return Expansion({**self.args, **changes.environment(self.config)}, instruction.escape)

    def chain(self) -> Sequence[str]:
        """Return the layers so far."""
        return self.image.chain if self.image is not None else ()

    # -- instructions -------------------------------------------------------------------------------------------------

    async def run(self, instruction: Instruction) -> None:
        """Carry out one instruction. Raises InvalidParameter, StepFailed and whatever the engine raises."""
        name = instruction.name
        if name == "RUN":
            await self._run(instruction)
        elif name in ("COPY", "ADD"):
            await self._copy(instruction)
        elif name == "ARG":
            await self._arg(instruction)
        elif name == "WORKDIR":
            await self._workdir(instruction)
        else:
            await self._configure(instruction)

    async def _configure(self, instruction: Instruction) -> None:
        if instruction.name == "MAINTAINER":
            self.author = instruction.text
        config = changes.apply(instruction, self.config, self.expansion(instruction), cmd_set=self.cmd_set)
        if instruction.name == "CMD":
            self.cmd_set = True
        before = self.config.get("Healthcheck")
        if instruction.name == "HEALTHCHECK" and before:
            self.shop.emit(f"Note: overriding previous HEALTHCHECK: [{' '.join(before.get('Test') or ())}]\n")
        created_by = _comment(instruction, config, self._shown(instruction, config))
        if self._from_cache(config, created_by):
            return
        if instruction.name == "VOLUME":
            await self.shop.layers.read(self.chain(), lambda root: _check_volumes(root, config["Volumes"]))
        await self._record(config, None, created_by)

    def _shown(self, instruction: Instruction, config: Mapping[str, Any]) -> str:
        """Return an instruction as the history shows it, with its words expanded: the cache goes by that."""
        expansion = self.expansion(instruction)
        if instruction.name in ("CMD", "ENTRYPOINT"):
            words = config.get("Cmd" if instruction.name == "CMD" else "Entrypoint") or []
            return f"{instruction.name} [{' '.join(_quoted(word) for word in words)}]"
        if instruction.name in ("ENV", "LABEL"):
            words = split_quoted(instruction.text, instruction.escape)
            if words and "=" not in words[0]:
                rest = instruction.text[len(words[0]) :].strip()
                return f"{instruction.name} {expansion.one(words[0])}={expansion.one(rest)}"
            return " ".join([instruction.name, *(expansion.one(word) for word in words)])
        if instruction.name == "SHELL":
            return f"SHELL [{' '.join(instruction.words or ())}]"
        if instruction.name == "VOLUME":
            return f"VOLUME [{' '.join(expansion.one(word) for word in instruction.arguments())}]"
        if instruction.name == "EXPOSE":
            words = [word for raw in sorted(instruction.text.split()) for word in expansion.many(raw)]
            return f"EXPOSE {' '.join(words)}"
        if instruction.name == "HEALTHCHECK":
            own = changes.apply(instruction, {}, expansion)
            return f"HEALTHCHECK {changes.shown_health(own['Healthcheck'])}"
        if instruction.name in ("ONBUILD", "MAINTAINER"):
            return f"{instruction.name} {instruction.text}"
        return f"{instruction.name} {expansion.one(instruction.text)}"

    async def _arg(self, instruction: Instruction) -> None:
        shown = ["ARG"]
        for word in split_quoted(instruction.text, instruction.escape):
            name, equals, raw = word.partition("=")
            name = self.expansion(instruction).one(name)
            if not name:
                raise instruction.fault("ARG names can not be blank")
            default = self.expansion(instruction).one(raw)
            shown.append(f"{name}{equals}{default}")
            self.shop.used_args.add(name)
            given = self.shop.options.build_args.get(name)
            self.declared.add(name)
            if given is not None:
                self.args[name] = given
            elif equals:
                self.args[name] = default
            elif name in self.global_args:
                self.args[name] = self.global_args[name]
        await self._finish(self.config, None, _comment(instruction, self.config, " ".join(shown)))

    async def _workdir(self, instruction: Instruction) -> None:
        config = changes.apply(instruction, self.config, self.expansion(instruction))
        wanted = str(config["WorkingDir"])

        def make(root: Path) -> None:
            try:
                with _folder(root) as descriptor:
                    make_folders(descriptor, wanted, self.shop.layers.ids.root)
            except NotADirectoryError:
                raise InvalidParameter(f"Cannot mkdir: {wanted} is not a directory") from None

        await self._change(config, _comment(instruction, config, f"WORKDIR {wanted}"), make)

    # -- RUN ----------------------------------------------------------------------------------------------------------

    async def _run(self, instruction: Instruction) -> None:
        if self.image is None:
            raise InvalidParameter("Please provide a source image with `from` prior to run")
        if not instruction.text and not instruction.words:
            raise instruction.fault("RUN requires at least one argument")
        for flag in instruction.flags:
            raise InvalidParameter(needs_buildkit(flag))
        command = changes.command(instruction, self.config)
        environment = changes.environment(self.config)
        given = {name: value for name, value in self.args.items() if name not in environment}
        for name in PREDEFINED & set(self.shop.options.build_args):
            value = self.shop.options.build_args[name]
            self.shop.used_args.add(name)
            if value is not None and name not in environment:
                given.setdefault(name, value)
        visible = [
            f"{name}={value}"
            for name, value in sorted(given.items())
            if name not in PREDEFINED or name in self.declared
        ]
        created_by = " ".join([*([f"|{len(visible)}", *visible] if given else []), *command])
        if self._from_cache(self.config, created_by):
            return
        config = copy.deepcopy(self.config)
        config["Env"] = [*(config.get("Env") or []), *(f"{name}={value}" for name, value in sorted(given.items()))]
        step = RunStep(self.image.id, command, config, self.shop.options.host)
        container_id = await self.shop.runner.create(step)
        keep = not self.shop.options.remove
        try:
            self.shop.emit(f" ---> Running in {container_id[:12]}\n")
            output = _Output(self.shop.emit)
            code = await self.shop.runner.run(container_id, output.feed)
            output.end()
            if code != 0:
                # A container whose command failed stays for the user to look at, unless --force-rm was given.
                keep = not self.shop.options.force_remove
                shown = " ".join(command)
                raise StepFailed(f"The command '{shown}' returned a non-zero code: {code}", code)
            layer = await self.shop.layers.take(container_id, self.shop.owner, keep=keep)
        except BaseException as error:
            if not keep or not isinstance(error, StepFailed):
                await self.shop.runner.remove(container_id)
            else:
                await self.shop.runner.keep(container_id)
            raise
        if keep:
            await self.shop.runner.keep(container_id)
        else:
            await self.shop.runner.remove(container_id)
            self.shop.emit(f" ---> Removed intermediate container {container_id[:12]}\n")
        await self._record(self.config, layer, created_by)

    # -- COPY and ADD -------------------------------------------------------------------------------------------------

    async def _copy(self, instruction: Instruction) -> None:
        expansion = self.expansion(instruction)
        *patterns, written = [expansion.one(word) for word in instruction.sources_and_target()]
        target = _Target(written, self._absolute(written))
        chmod = _mode(instruction, expansion.one(instruction.flags["chmod"])) if "chmod" in instruction.flags else None
        flags = {name: expansion.one(value) for name, value in instruction.flags.items()}
        if "from" in flags:
            image = await self._source_image(instruction, flags["from"])
            if image is None:
                raise instruction.fault(f"invalid from flag value {flags['from']}: the stage has no files")
            await self._copy_from(instruction, patterns, target, flags, chmod, image.chain)
            return
        with contextlib.ExitStack() as stack:
            words: list[tuple[str, SourceTree]] = []
            for pattern in patterns:
                if instruction.name == "ADD" and re.match(r"https?://", pattern):
                    fetched = Path(tempfile.mkdtemp(dir=self.shop.images.content.tmp, prefix="fetched-"))
                    stack.callback(shutil.rmtree, fetched, ignore_errors=True)
                    await _fetch(pattern, fetched, target.path)
                    words.append(("*", FolderTree(fetched, origin="download")))
                else:
                    words.append((pattern, self.shop.context))
            await self._copy_files(instruction, words, target, flags, chmod)

    def _absolute(self, target: str) -> str:
        if target.startswith("/"):
            return target
        folder = target.endswith(("/", "/.")) or target in (".", "")
        path = posixpath.normpath(posixpath.join("/", str(self.config.get("WorkingDir") or ""), target))
        return path + ("/" if folder and path != "/" else "")

    async def _source_image(self, instruction: Instruction, name: str) -> Image | None:
        key = name.lower()
        if key in self.shop.stages:
            return self.shop.stages[key]
        if key == str(self.shop.current):
            raise InvalidParameter(f"invalid from flag value {name}: refers to current build stage")
        if name.isdigit():
            raise InvalidParameter(f"invalid from flag value {name}: index out of bounds")
        assert self.shop.find_image is not None
        try:
            found: Image = await self.shop.find_image(name, False)
        except EngineError as error:
            raise InvalidParameter(f"invalid from flag value {name}: {error}") from error
        return found

    async def _copy_from(
        self,
        instruction: Instruction,
        patterns: Sequence[str],
        target: _Target,
        flags: Mapping[str, str],
        chmod: int | None,
        chain: Sequence[str],
    ) -> None:
        """Copy from the layers of another image."""
        layers = self.shop.layers
        sources, digest = await layers.read(
            chain, lambda root: _look(instruction, [(each, _image_tree(root, layers.ids)) for each in patterns], target)
        )
        created_by = self._copied(instruction, flags, digest, target)
        if self._from_cache(self.config, created_by):
            return

        def work(root: Path, source_root: Path) -> None:
            there = _image_tree(source_root, layers.ids)
            chosen = [replace(source, tree=there) for source in sources]
            owner = owner_of(root, flags.get("chown", ""))
            place(root, chosen, target.path, chown=owner, chmod=chmod, ids=layers.ids)

        layer = await layers.change_from(self.chain(), chain, self.shop.owner, work)
        await self._record(self.config, layer, created_by)

    async def _copy_files(
        self,
        instruction: Instruction,
        words: Sequence[tuple[str, SourceTree]],
        target: _Target,
        flags: Mapping[str, str],
        chmod: int | None,
    ) -> None:
        """Copy what words mean in the trees beside them, all in one layer."""
        layers = self.shop.layers
        sources, digest = await layers.in_thread(lambda: _look(instruction, words, target))
        created_by = self._copied(instruction, flags, digest, target)
        if self._from_cache(self.config, created_by):
            return

        def work(root: Path) -> None:
            owner = owner_of(root, flags.get("chown", ""))
            place(root, sources, target.path, chown=owner, chmod=chmod, ids=layers.ids)

        layer = await layers.change(self.chain(), self.shop.owner, work)
        await self._record(self.config, layer, created_by)

    def _copied(self, instruction: Instruction, flags: Mapping[str, str], digest: str, target: _Target) -> str:
        """Return what the history says of COPY and ADD."""
        shown = "".join(f"--{name}={flags[name]} " for name in ("chown", "chmod") if name in flags)
        return _comment(instruction, self.config, f"{instruction.name} {shown}{digest} in {target.written} ")

    # -- images -------------------------------------------------------------------------------------------------------

    async def _change(self, config: dict[str, Any], created_by: str, work: Callable[[Path], None]) -> None:
        if self._from_cache(config, created_by):
            return
        layer = await self.shop.layers.change(self.chain(), self.shop.owner, work)
        await self._record(config, layer, created_by)

    async def _finish(self, config: dict[str, Any], layer: LayerBlob | None, created_by: str) -> None:
        if not self._from_cache(config, created_by):
            await self._record(config, layer, created_by)

    async def _record(self, config: dict[str, Any], layer: LayerBlob | None, created_by: str) -> None:
        self.broken = True
        base = self.image
        deriving = asyncio.to_thread(
            lambda: self.shop.images.derive(
                base, layer, config, owner=self.shop.owner, created_by=created_by, author=self.author,
                parent=base.id if base is not None else "", intermediate=True,
            )
        )  # fmt: skip
        self.image = await finished(deriving)
        self.config = config
        self.shop.emit(f" ---> {self.image.short_id}\n")

    def _from_cache(self, config: dict[str, Any], created_by: str) -> bool:
        if self.shop.options.no_cache or self.broken:
            return False
        if self.shop.options.cache_from:  # then these images alone are the cache
            found = from_other_image(self.shop, self.image, config, created_by)
        else:
            found = find_cached(self.shop.images, self.image, config, created_by)
        if found is None:
            self.broken = True
            return False
        self.shop.images.hold_for(self.shop.owner, found)
        self.image, self.config = found, config
        self.shop.emit(" ---> Using cache\n")
        self.shop.emit(f" ---> {found.short_id}\n")
        return True


def triggers(image: Image | None, line: int) -> list[Instruction]:
    """Return the instructions that an image wants carried out where it is built on."""
    if image is None:
        return []
    return [parse_line(text, line) for text in image.config.get("OnBuild") or []]


def inherited(image: Image | None) -> dict[str, Any]:
    """Return the configuration that a stage begins with."""
    config = {key: value for key, value in (image.config if image else {}).items() if key in FIELDS}
    config.pop("OnBuild", None)
    if not any(str(entry).startswith("PATH=") for entry in config.get("Env") or []):
        config["Env"] = [*(config.get("Env") or []), f"PATH={changes.DEFAULT_PATH}"]
    return copy.deepcopy(config)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in FIELDS and value not in (None, "", [], {}, False)}


def find_cached(images: Images, parent: Image | None, config: Mapping[str, Any], created_by: str) -> Image | None:
    """Return the newest image that this very step made of the same parent before."""
    wanted = _plain(config)
    depth = len(parent.document.get("history") or []) + 1 if parent is not None else 1
    found = None
    for image in images.children(parent.id if parent is not None else ""):
        history = image.document.get("history") or []
        if len(history) != depth or history[-1].get("created_by") != created_by or _plain(image.config) != wanted:
            continue
        if found is None or image.created > found.created:
            found = image
    return found


def from_other_image(shop: Workshop, parent: Image | None, config: Mapping[str, Any], created_by: str) -> Image | None:
    """Return the step as an image named by --cache-from has it, made an image of its own."""
    before = list((parent.document.get("history") or []) if parent is not None else [])
    for name in shop.options.cache_from:
        image = shop.images.find(name)
        history = list(image.document.get("history") or []) if image is not None else []
        if image is None or len(history) <= len(before):
            continue
        same = [each.get("created_by") for each in history[: len(before)]] == [
            each.get("created_by") for each in before
        ]
        step = history[len(before)]
        chain = parent.chain if parent is not None else ()
        if not same or step.get("created_by") != created_by or image.chain[: len(chain)] != tuple(chain):
            continue
        layer = None
        if not step.get("empty_layer"):
            if len(image.layers) <= len(chain):
                continue
            layer = image.layers[len(chain)]
        shop.images.hold_for(shop.owner, image)
        return shop.images.derive(
            parent, layer, config, owner=shop.owner, created_by=created_by, created=str(step.get("created") or ""),
            parent=parent.id if parent is not None else "", intermediate=True,
        )  # fmt: skip
    return None


def _comment(instruction: Instruction, config: Mapping[str, Any], text: str) -> str:
    return f"{' '.join(changes.shell_of(config))} #(nop) {'' if instruction.name in ('COPY', 'ADD', 'WORKDIR') else ' '}{text}"


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _mode(instruction: Instruction, text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3,4}", text):
        raise instruction.fault(f"invalid chmod parameter: {text!r}: it should be octal, between 0 and 07777")
    return int(text, 8)


def _check_volumes(root: Path, volumes: Iterable[str]) -> None:
    """Refuse a volume where the image has a file. Blocks. Raises InvalidParameter."""
    tree = _image_tree(root)
    for path in volumes:
        with contextlib.suppress(OSError):
            if not tree.is_folder(posixpath.normpath(f"/{path}").lstrip("/")):
                raise InvalidParameter(f"cannot mount volume over existing file, file exists {path}")


def _image_tree(root: Path, ids: IdMap = SAME) -> FolderTree:
    return FolderTree(root, origin="image", with_owners=True, ids=ids)


def _look(
    instruction: Instruction, words: Sequence[tuple[str, SourceTree]], target: _Target
) -> tuple[list[Source], str]:
    """Return what the words of COPY or ADD mean, and the digest of it. Blocks. Raises InvalidParameter."""
    sources = [
        source
        for pattern, tree in words
        for source in tree.find(
            pattern, command=instruction.name, archives=instruction.name == "ADD" and tree.origin != "download"
        )
    ]
    if len(sources) > 1 and not target.path.endswith("/"):
        raise InvalidParameter(
            f"When using {instruction.name} with more than one source file, the destination must be a directory and end with a /"
        )
    return sources, hash_of(sources)


def owner_of(root: Path, text: str) -> tuple[int, int] | None:
    """Resolve user[:group] of --chown in the image; a number alone is also the group's. None for nothing."""
    if not text:
        return None
    user, colon, _group = text.partition(":")
    try:
        found = resolve_user(root, text)
    except InvalidParameter as error:
        why = str(error)
        if match := re.fullmatch(r"unable to find (user|group) (\S+): no matching entries in (passwd|group) file", why):
            what = "uid" if match[1] == "user" else "gid"
            why = f"can't find {what} for {match[1]} {match[2]}: no such {match[1]}: {match[2]}"
        raise InvalidParameter(f"unable to convert uid/gid chown string to host mapping: {why}") from None
    if not colon and user.isdigit():
        return found.uid, found.uid
    return found.uid, found.gid


@contextlib.contextmanager
def _folder(root: Path) -> Iterator[int]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _fetch(url: str, folder: Path, target: str) -> None:
    """Put what an address gives into a folder under the last part of its path."""
    name = posixpath.basename(urlsplit(url).path)
    if not name:
        if target.endswith("/"):
            raise InvalidParameter(f"cannot determine filename for source {url}")
        name = "download"
    if name in (".", ".."):
        raise InvalidParameter(f"cannot determine filename for source {url}")
    async with remote.fetched(url) as response:
        with (folder / name).open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            async for piece in response.content.iter_any():
                file.write(piece)
        stamp = remote.modified(response)
    if stamp:
        os.utime(folder / name, (stamp, stamp))


class _Output:
    """Turns the bytes of a command into text for the client, errors in red, never cutting a character."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in (1, 2)}

    def feed(self, stream: int, data: bytes, final: bool = False) -> None:
        if text := self._decoders[stream].decode(data, final):
            self._emit(f"\x1b[91m{text}\x1b[0m" if stream == 2 else text)

    def end(self) -> None:
        for stream in self._decoders:
            self.feed(stream, b"", final=True)
