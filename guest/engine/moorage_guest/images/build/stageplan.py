"""Plans one stage: the instructions become steps, the image's configuration and the rows of its history."""

from __future__ import annotations

import copy
import posixpath
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import platforms
from moorage_guest.images.build import changes
from moorage_guest.images.build.dialect import HereDocument, Stage, Statement, parse_trigger
from moorage_guest.images.build.dockerfile import pairs
from moorage_guest.images.build.mounts import Mount, read_mount
from moorage_guest.images.build.planned import Copy, MakeFolder, Origin, Planned, Row, Run, Step
from moorage_guest.images.build.request import NETWORK_HOST
from moorage_guest.images.build.seams import BuildError, Built
from moorage_guest.images.build.words import Expansion, split_quoted

if TYPE_CHECKING:
    from moorage_guest.images.build.planning import Planner

#: Arguments that may be given without ARG, and are no part of what a step is.
PROXIES = frozenset(
    name
    for base in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (base, base.lower())
)

#: What steps that make a layer are called.
LAYERED = ("RUN", "COPY", "ADD", "WORKDIR")

#: What of an image's configuration a stage does not take over.
_DROPPED = ("OnBuild", "Hostname", "Domainname", "Image", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce")  # fmt: skip


class StagePlan:
    """Plans one stage."""

    def __init__(
        self, planner: Planner, stage: Stage, base: Origin | None, before: Planned | None, find: Mapping[str, Origin]
    ) -> None:
        self._planner = planner
        self._request = planner.request
        self._find = find
        if before is not None:
            config, document, author = copy.deepcopy(before.config), before.document, before.author
            self._variables = dict(before.variables)
        else:
            assert base is None or base.image is not None or base.address is not None
            document = base.image.document if base is not None and base.image is not None else {}
            config = copy.deepcopy(dict(document.get("config") or {}))
            author = str(document.get("author") or "")
            if base is None or base.image is None:
                config = {"Env": [f"PATH={changes.DEFAULT_PATH}"], "WorkingDir": "/"}
            self._variables = {"PATH": changes.DEFAULT_PATH, **changes.environment(config)}
        triggers = [str(each) for each in config.get("OnBuild") or []]
        for name in _DROPPED:
            config.pop(name, None)
        self._out = Planned(stage, base, config, document, author)
        self._statements = [
            *(parse_trigger(text, stage.base.file, stage.base.line) for text in triggers), *stage.steps,
        ]  # fmt: skip
        self._declared: list[tuple[str, str | None]] = []
        self._cmd_set = False

    def planned(self) -> Planned:
        out, stage = self._out, self._out.stage
        base = out.base
        out.shows_base = base is not None and base.stage is None and not base.made_here
        out.total = out.shows_base + sum(statement.name in LAYERED for statement in self._statements)
        several = self._planner.has_several
        out.label = self._planner.shown(stage.index) if several else ""
        if stage.name and self._request.named_context(stage.name) is not None:
            out.total = int(out.shows_base)
            self._statements = []
        for statement in self._statements:
            try:
                self._one(statement)
            except BuildError:
                raise
            except InvalidParameter as error:
                raise statement.error(str(error)) from None
        if stage.index == self._planner.target and self._request.labels:
            labels = dict(out.config.get("Labels") or {})
            out.config["Labels"] = {**labels, **self._request.labels}
        out.variables = self._variables
        return out

    def _expansion(self, statement: Statement) -> Expansion:
        return Expansion(self._variables, statement.escape)

    def _seen(self, statement: Statement) -> str:
        """Return an instruction as people see it, with what its variables are; quotes are a command's own."""
        _, _, rest = statement.original.partition(" ")
        shown = self._expansion(statement).shown(rest.strip(), keep_quotes=statement.name == "RUN")
        return f"{statement.name} {shown}"

    def _note(self, created_by: str, step: Step | None = None) -> None:
        number = None
        if step is not None:
            number = len(self._out.steps)
            self._out.steps.append(step)
        self._out.rows.append(Row(created_by, number))

    @property
    def _number(self) -> int:
        return len(self._out.steps) + 1 + self._out.shows_base

    def _folder(self) -> str:
        return str(self._out.config.get("WorkingDir") or "/")

    def _one(self, statement: Statement) -> None:
        name, config = statement.name, self._out.config
        if name == "ARG":
            self._arg(statement)
        elif name == "RUN":
            self._run(statement)
        elif name in ("COPY", "ADD"):
            self._copy(statement)
        elif name == "MAINTAINER":
            self._out.author = statement.text
            self._note(f"MAINTAINER {statement.text}")
        else:
            if name == "HEALTHCHECK":
                config = {**config, "Healthcheck": None}
            new = changes.apply(statement, config, self._expansion(statement), cmd_set=self._cmd_set)
            if name == "CMD":
                self._cmd_set = True
                new["ArgsEscaped"] = True
                if statement.words is None and not statement.text:
                    new["Cmd"] = [*changes.shell_of(new), ""]
            if name == "WORKDIR":
                written = self._expansion(statement).one(statement.text)
                new["WorkingDir"] = written if written.startswith("/") else new["WorkingDir"]
            shown = self._shown(statement, new)
            self._out.config = new
            if name == "ENV":
                environment = changes.environment(new)
                expansion = self._expansion(statement)
                names = [expansion.one(raw) for raw, _ in pairs(statement)]
                self._variables.update({each: environment[each] for each in names if each in environment})
            if name == "WORKDIR":
                path, user = str(new["WorkingDir"]), str(new.get("User") or "")
                self._note(shown, MakeFolder(statement, self._number, self._seen(statement), path, user))
            elif name != "ONBUILD":
                self._note(shown)

    def _shown(self, statement: Statement, new: Mapping[str, Any]) -> str:
        """Return what the history says of an instruction that only changes the configuration."""
        name, expansion = statement.name, self._expansion(statement)
        if name in ("CMD", "ENTRYPOINT"):
            words = new.get("Cmd" if name == "CMD" else "Entrypoint") or []
            return f"{name} [{' '.join(_quoted(word) for word in words)}]"
        if name in ("ENV", "LABEL"):
            found = []
            words = split_quoted(statement.text, statement.escape)
            if words and "=" not in words[0]:
                rest = statement.text[len(words[0]) :].strip()
                return f"{name} {expansion.one(words[0])}={expansion.one(rest)}"
            for word in words:
                key, _, value = word.partition("=")
                found.append(f"{expansion.one(key)}={expansion.one(value)}")
            return f"{name} {' '.join(found)}"
        if name == "SHELL":
            return f"SHELL [{' '.join(statement.words or ())}]"
        if name == "VOLUME":
            return f"VOLUME [{' '.join(expansion.one(word) for word in statement.arguments())}]"
        if name == "EXPOSE":
            own = changes.apply(statement, {}, expansion)["ExposedPorts"]
            return f"EXPOSE map[{' '.join(f'{port}:{{}}' for port in sorted(own))}]"
        if name == "HEALTHCHECK":
            own = changes.apply(statement, {}, expansion)
            return f"HEALTHCHECK {changes.shown_health(own['Healthcheck'])}"
        if name == "WORKDIR":
            return f"WORKDIR {new['WorkingDir']}"
        return f"{name} {expansion.one(statement.text)}"

    def _arg(self, statement: Statement) -> None:
        shown = ["ARG"]
        for word in split_quoted(statement.text, statement.escape):
            expansion = self._expansion(statement)
            name, equals, raw = word.partition("=")
            name = expansion.one(name)
            if not name:
                raise statement.fault("ARG names can not be blank")
            value: str | None = expansion.one(raw) if equals else None
            shown.append(f"{name}={value}" if equals else name)
            if name in self._request.build_args:
                value = self._request.build_args[name]
            elif value is None:
                value = self._planner.global_args.get(name)
            self._declared.append((name, value))
            if value is not None:
                self._variables[name] = value
        self._note(" ".join(shown))

    # -- RUN ----------------------------------------------------------------------------------------------------------

    def _run(self, statement: Statement) -> None:
        config = self._out.config
        network = self._network(statement)
        security = statement.flags.get("security", "sandbox")
        if security not in ("sandbox", "insecure"):
            raise statement.error(f"security {security!r} is not supported")
        if security == "insecure":
            raise statement.error("security.insecure is not allowed")
        command, script, note = self._command(statement)
        expansion = self._expansion(statement)
        mounts = [read_mount(statement, value, expansion.one, self._folder()) for value in statement.values("mount")]
        variables = self._variables
        proxies = {
            key: value for key, value in self._request.build_args.items() if key in PROXIES and key not in variables
        }
        step = Run(
            statement, self._number, self._seen(statement), tuple(command),
            tuple(f"{key}={value}" for key, value in variables.items()),
            tuple(f"{key}={value}" for key, value in proxies.items()),
            str(config.get("User") or ""), self._folder(),
            tuple((mount, self._mounted(statement, mount)) for mount in mounts), network, script, note,
        )  # fmt: skip
        given: dict[str, str] = {}
        for key, value in self._declared:
            given[key] = variables.get(key, value or "")
        words = [*([f"|{len(given)}", *(f"{key}={value}" for key, value in given.items())] if given else []), *command]
        self._note(f"RUN {' '.join(words)} # buildkit", step)

    def _network(self, statement: Statement) -> str:
        mode = self._expansion(statement).one(statement.flags.get("network", "default"))
        if mode not in ("default", "host", "none"):
            raise statement.error(f'invalid network mode: "{mode}"')
        if mode == "host" and NETWORK_HOST not in self._request.entitlements:
            raise BuildError(
                "failed to load LLB: network.host is not allowed: build with --network host and --allow network.host",
                source=statement.source,
            )
        return mode if mode != "default" else self._request.network

    def _command(self, statement: Statement) -> tuple[list[str], tuple[str, str] | None, str]:
        """Return the words to run, the program if the instruction is one, and what is shown of a here-document."""
        if statement.words is not None:
            return list(statement.words), None, ""
        text, documents = statement.text, statement.documents
        shell = changes.shell_of(self._out.config)
        if not documents:
            return [*shell, text], None, ""
        first = documents[0]
        note = f" ({_summary(first.text)})"
        if len(documents) == 1 and _only_document(text, statement.escape):
            if first.data.startswith("#!"):
                return [*shell, f"/dev/pipes/{first.name}"], (first.name, first.text), note
            return [*shell, first.text], None, note
        full = "\n".join([text, *(f"{each.data}{each.name}" for each in documents)])
        return [*shell, full], None, ""

    def _mounted(self, statement: Statement, mount: Mount) -> Origin | None:
        if mount.origin:
            return self._origin(statement, mount.origin)
        return Origin(address="", name="context") if mount.kind == "bind" else None

    def _origin(self, statement: Statement, name: str) -> Origin:
        stage = self._planner.from_stage(name, self._out.stage.index)
        index = self._out.stage.index
        if stage is not None and stage > index and statement.name == "COPY":
            raise statement.error(
                f'cannot copy from stage "{name}", it needs to be defined before current stage "{self._planner.shown(index)}"'
            )
        if stage is not None:
            return Origin(stage=stage, name=name)
        if name.isdigit():
            raise statement.error(f"invalid from flag value {name}: index out of bounds")
        if name == "scratch":
            return Origin(image=Built({}, (), (), platforms.this_platform(), ""), name=name)
        return self._find[name]

    # -- COPY and ADD -------------------------------------------------------------------------------------------------

    def _copy(self, statement: Statement) -> None:
        expansion = self._expansion(statement)
        *raw, last = statement.sources_and_target()
        target = expansion.one(last)
        flags = {name: expansion.one(value) for name, value in statement.flags.items() if name != "from"}
        documents = {each.name: each for each in statement.documents}
        sources: list[str] = []
        texts: list[tuple[str, str]] = []
        shown: list[str] = []
        for word in raw:
            document = _document_of(word, documents, statement.escape)
            if document is None:
                found = expansion.one(word)
                sources.append(found)
                shown.append(found)
            else:
                texts.append((document.name, expansion.raw(document.text) if document.expand else document.text))
                shown.append(f"<<{document.name}")
        origin = Origin(address="", name="context")
        if "from" in statement.flags:
            origin = self._origin(statement, self._planner.from_name(statement))
        excluded = tuple(expansion.one(value) for value in statement.values("exclude"))
        parents = flags.get("parents", "false") == "true"
        step = Copy(
            statement, self._number, self._seen(statement), origin, tuple(sources), tuple(texts), self._absolute(target),
            flags.get("chown", ""), flags.get("chmod", ""), flags.get("link", "false") == "true", parents, excluded,
            flags.get("checksum", ""), flags.get("keep-git-dir", "false") == "true",
        )  # fmt: skip
        options = [*(["--parents"] if parents else []), *(f"--{name}={flags[name]}" for name in ("chown", "chmod") if name in flags)]  # fmt: skip
        self._note(f"{' '.join([statement.name, *options, *shown, target])} # buildkit", step)

    def _absolute(self, target: str) -> str:
        folder = target.endswith(("/", "/.")) or target in (".", "")
        path = posixpath.normpath(posixpath.join("/", self._folder(), target)).replace("//", "/")
        return path + ("/" if folder and path != "/" else "")


def expanded(statement: Statement, expand: Callable[[str], str], word: str) -> str:
    """Expand a word of an instruction; what is wrong with it is told with the line. Raises BuildError."""
    try:
        return expand(word)
    except InvalidParameter as error:
        raise statement.error(str(error)) from None


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t") + '"'


def _summary(text: str) -> str:
    """Return a here-document as progress shows it."""
    first, _, rest = text.partition("\n")
    first = first.strip()[:30]
    return f"{first}..." if rest.strip() else first


def _only_document(text: str, escape: str) -> bool:
    words = split_quoted(text, escape)
    return len(words) == 1 and words[0].lstrip("0").startswith("<<")


def _document_of(word: str, documents: Mapping[str, HereDocument], escape: str) -> HereDocument | None:
    if not word.startswith("<<"):
        return None
    return documents.get(word[2:].removeprefix("-").strip("'\"").replace(escape, ""))
