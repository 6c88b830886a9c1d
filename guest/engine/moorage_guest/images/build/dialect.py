"""Reads a Dockerfile in BuildKit's dialect: what `dockerfile` reads, and here-documents, more flags, where each line stands.

What instructions do is for `changes` and `stagework`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from moorage_guest.images.build import dockerfile
from moorage_guest.images.build.dockerfile import DockerfileError, Instruction, json_words, suggestion
from moorage_guest.images.build.seams import BuildError, Source
from moorage_guest.images.build.words import split_quoted

FLAGS = {
    "ADD": {"chown", "chmod", "link", "keep-git-dir", "checksum", "exclude"},
    "COPY": {"chown", "chmod", "from", "link", "parents", "exclude"},
    "FROM": {"platform"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
    "RUN": {"mount", "network", "security"},
}
BOOLEAN = {"link", "keep-git-dir", "parents"}
REPEATED = {"mount", "exclude"}

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_KNOWN_DIRECTIVES = {"syntax", "escape", "check"}
_HERE = re.compile(r"(\d*)<<(-?)([^<]*)")
_WITH_HERE = ("ADD", "COPY", "RUN")

#: Names by which the frontend that is built in goes; another one would be a program from a registry.
_OWN_SYNTAX = re.compile(r"(?:docker\.io/)?docker/dockerfile(?:-upstream)?(?::[\w.-]+)?(?:@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class HereDocument:
    """A text written into the Dockerfile. ``data`` is as it stands there, with the tabs that ``chomp`` takes away."""

    name: str
    data: str
    expand: bool
    chomp: bool

    @property
    def text(self) -> str:
        """What the document contains."""
        return re.sub(r"(?m)^\t+", "", self.data) if self.chomp else self.data


@dataclass(frozen=True)
class Statement(Instruction):
    """One instruction, from line ``line`` to ``last``. ``many`` are the values of flags that may be given more than once."""

    last: int = 0
    many: tuple[tuple[str, str], ...] = ()
    documents: tuple[HereDocument, ...] = ()
    file: Source | None = None

    @property
    def source(self) -> Source | None:
        """Where it stands."""
        if self.file is None:
            return None
        return Source(self.file.filename, self.file.data, ((self.line, max(self.last, self.line)),))

    def values(self, flag: str) -> list[str]:
        """Return all values of a flag."""
        return [value for name, value in self.many if name == flag]

    def fault(self, what: str) -> DockerfileError:
        """Return an error that names the line."""
        return LineError(f"dockerfile parse error on line {self.line}: {what}", self.source)

    def error(self, what: str) -> BuildError:
        """Return an error of this instruction that does not name the line, for the client shows it."""
        return BuildError(what, source=self.source)


class LineError(BuildError, DockerfileError):
    """The Dockerfile cannot be read."""

    def __init__(self, message: str, source: Source | None) -> None:
        BuildError.__init__(self, message, source=source)


@dataclass(frozen=True)
class Parsed:
    """A Dockerfile. ``syntax`` and ``check`` are its directives."""

    statements: tuple[Statement, ...]
    syntax: str
    check: str
    warnings: tuple[tuple[str, tuple[int, int]], ...]


def parse(data: bytes, filename: str) -> Parsed:
    """Read a whole Dockerfile. Raises LineError."""
    return _Reader(data, filename).parsed()


def check_syntax(wanted: str) -> None:
    """Refuse a frontend that is not the one built in. Raises BuildError."""
    name = wanted.split()[0] if wanted.split() else ""
    if name and not _OWN_SYNTAX.fullmatch(name):
        raise BuildError(
            f"frontend image {name} (# syntax=) cannot be run: this engine reads Dockerfiles itself; take the line out, or make "
            "a builder with docker buildx create --driver docker-container"
        )


def parse_trigger(text: str, file: Source | None, line: int) -> Statement:
    """Read one instruction that an image wants carried out (ONBUILD). Raises LineError."""
    first, _, rest = text.partition("\n")
    reader = _Reader((first + "\n" + rest).encode(), "ONBUILD")
    (statement,) = reader.parsed().statements
    return Statement(**{**vars(statement), "line": line, "last": line, "file": file})


class _Reader:
    def __init__(self, data: bytes, filename: str) -> None:
        self._file = Source(filename, data)
        text = data.decode("utf-8", "replace").removeprefix("\ufeff")
        self._lines = [line.removesuffix("\r") for line in text.split("\n")]
        if self._lines and not self._lines[-1]:
            self._lines.pop()
        self._escape = "\\"
        self._directives: dict[str, str] = {}
        self._warnings: list[tuple[str, tuple[int, int]]] = []
        self._at = 0

    def parsed(self) -> Parsed:
        self._read_directives()
        found = list(self._statements())
        if not found:
            raise LineError("file with no instructions", self._where(1, 1))
        return Parsed(
            tuple(found),
            self._directives.get("syntax", ""),
            self._directives.get("check", ""),
            tuple(self._warnings),
        )

    def _where(self, first: int, last: int) -> Source:
        return Source(self._file.filename, self._file.data, ((first, last),))

    def _read_directives(self) -> None:
        start = 1 if self._lines and self._lines[0].startswith("#!") else 0
        for number, line in enumerate(self._lines[start:], start + 1):
            match = _DIRECTIVE.fullmatch(line.strip())
            if match is None or match[1].lower() not in _KNOWN_DIRECTIVES:
                return
            name = match[1].lower()
            if name in self._directives:
                raise LineError(f"only one {name} parser directive can be used", self._where(1, 1))
            self._directives[name] = match[2]
            if name == "escape":
                if match[2] not in ("\\", "`"):
                    raise LineError(f"invalid ESCAPE '{match[2]}'. Must be ` or \\", self._where(number, number))
                self._escape = match[2]

    def _statements(self) -> Iterator[Statement]:
        ending = re.compile(re.escape(self._escape) + r"[ \t]*$")
        while self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            first = self._at
            current, going_on = self._joined(line.lstrip(), ending)
            empty = False
            while going_on and self._at < len(self._lines):
                line = self._lines[self._at]
                self._at += 1
                if line.lstrip().startswith("#"):
                    continue
                if not line.strip():
                    empty = True
                    continue
                more, going_on = self._joined(line, ending)
                current += more
            if empty:
                self._warnings.append((f"Empty continuation line found in: {current}", (first, self._at)))
            if current.strip():
                yield self._statement(current.rstrip(), first)

    def _joined(self, line: str, ending: re.Pattern[str]) -> tuple[str, bool]:
        trimmed = line.rstrip()
        match = ending.search(trimmed)
        if match and not trimmed.endswith(self._escape * 2):
            return trimmed[: match.start()], True
        return line, False

    def _statement(self, text: str, first: int) -> Statement:
        where = self._where(first, self._at)
        try:
            return self._read(text.strip(), first, where)
        except LineError:
            raise
        except DockerfileError as error:
            raise LineError(str(error), where) from None

    def _read(self, text: str, first: int, where: Source) -> Statement:
        name, rest = _named(text)

        def fault(what: str) -> LineError:
            return LineError(f"dockerfile parse error on line {first}: {what}", where)

        if name not in dockerfile.INSTRUCTIONS:
            raise fault(f"unknown instruction: {name}{suggestion(name, dockerfile.INSTRUCTIONS)}")
        documents: tuple[HereDocument, ...] = ()
        inner, argument = _named(rest) if name == "ONBUILD" else (name, rest)
        if inner in _WITH_HERE:
            documents = tuple(self._documents(argument, first))
            if name == "ONBUILD" and documents:
                rest = "\n".join([rest, *(f"{each.data}{each.name}" for each in documents)])
        many: list[tuple[str, str]] = []
        if name in FLAGS:
            many, rest = self._flags(name, rest, fault)
        if not rest and name not in ("RUN", "CMD", "ENTRYPOINT"):
            raise fault(f"{name} requires {dockerfile.NEEDED.get(name, 'at least one argument')}")
        words = None
        if name in ("ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME", "HEALTHCHECK"):
            body = rest
            if name == "HEALTHCHECK":
                body = rest.partition(" ")[2].strip() if rest[:3].upper() == "CMD" else ""
            words = json_words(body)
        statement = Statement(
            name, rest, first, dict(many), words, text, self._escape, self._at, tuple(many), documents, self._file
        )
        self._check(statement)
        return statement

    def _check(self, statement: Statement) -> None:
        if statement.name == "RUN" and not statement.text and not statement.words:
            raise statement.fault("RUN requires at least one argument")
        if statement.name == "ONBUILD" and statement.text.split(maxsplit=1)[0].upper() == "ONBUILD":
            raise statement.fault("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")

    def _documents(self, text: str, first: int) -> Iterator[HereDocument]:
        """Take the here-documents that a line announces from the lines below it."""
        if text.startswith("[") and json_words(text) is not None:
            return
        for word in split_quoted(text, self._escape):
            match = _HERE.fullmatch(word)
            if match is None or not match[3]:
                continue
            if match[1] not in ("", "0"):
                continue  # another descriptor: a matter of the shell
            quoted = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", match[3])
            name = (quoted[1] or quoted[2] or "") if quoted else match[3].replace(self._escape, "")
            if not name or any(mark in name for mark in "'\"") or " " in name:
                continue
            chomp = bool(match[2])
            lines: list[str] = []
            while True:
                if self._at >= len(self._lines):
                    raise LineError("unterminated heredoc", self._where(first, self._at))
                line = self._lines[self._at]
                self._at += 1
                if (line.lstrip("\t") if chomp else line) == name:
                    break
                lines.append(f"{line}\n")
            yield HereDocument(name, "".join(lines), name == match[3], chomp)

    def _flags(self, name: str, rest: str, fault: Callable[[str], LineError]) -> tuple[list[tuple[str, str]], str]:
        found: list[tuple[str, str]] = []
        while rest.startswith("--"):
            raw, rest = _first_word(rest, self._escape)
            if raw == "--":
                break
            key, equals, value = raw[2:].partition("=")
            if key not in FLAGS[name]:
                raise fault(f"unknown flag: {key}{suggestion(key, FLAGS[name])}")
            if key in BOOLEAN:
                value = (value if equals else "true").lower()
                if value not in ("true", "false"):
                    raise fault(f"expecting boolean value for flag {key}, not: {value}")
            elif not equals:
                raise fault(f"missing a value on flag: {key}")
            if key not in REPEATED and any(each == key for each, _ in found):
                raise fault(f"duplicate flag specified: {key}")
            found.append((key, value))
        return found, rest.strip()


def _named(text: str) -> tuple[str, str]:
    parts = text.split(maxsplit=1)
    return (parts[0].upper() if parts else "", parts[1].strip() if len(parts) > 1 else "")


def _first_word(text: str, escape: str) -> tuple[str, str]:
    """Return the first word, without its quotes and escapes, and what follows."""
    word, quote, position = "", "", 0
    while position < len(text):
        char = text[position]
        if char == escape and position + 1 < len(text):
            if quote or text[position + 1] not in "\"'":
                word += char  # only quotes are escaped here: the rest belongs to the value
            word += text[position + 1]
            position += 2
            continue
        if quote:
            if char == quote:
                quote = ""
            else:
                word += char
        elif char in "'\"":
            quote = char
        elif char.isspace():
            break
        else:
            word += char
        position += 1
    return word, text[position:].strip()


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it. ``name`` is "" when it has none."""

    index: int
    base: Statement
    image: str
    name: str
    steps: tuple[Statement, ...]


def stages(statements: Sequence[Statement]) -> tuple[list[Statement], list[Stage]]:
    """Return the ARGs before the first FROM, and the stages. Raises LineError."""
    first: list[Statement] = []
    found: list[Stage] = []
    for statement in statements:
        if statement.name == "FROM":
            words = statement.text.split()
            name = ""
            if len(words) == 3 and words[1].upper() == "AS":
                name = words[2].lower()
                if not re.fullmatch(r"[a-z][a-z0-9-_.]*", name):
                    raise statement.fault(
                        f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols'
                    )
            elif len(words) != 1:
                raise statement.fault("FROM requires either one or three arguments")
            found.append(Stage(len(found), statement, words[0], name, ()))
        elif not found:
            if statement.name != "ARG":
                raise statement.error("no build stage in current context")
            first.append(statement)
        else:
            last = found[-1]
            found[-1] = Stage(last.index, last.base, last.image, last.name, (*last.steps, statement))
    if not found:
        raise LineError("no build stage in current context", statements[-1].source if statements else None)
    return first, found
