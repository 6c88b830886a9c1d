"""Reads a Dockerfile: directives, continued lines, comments, instructions with their flags and JSON forms.

What instructions do is for `changes` and `steps`. Flags and forms that only BuildKit knows are refused by name.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.words import split_quoted

INSTRUCTIONS = frozenset(
    {
        "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
        "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
    }
)  # fmt: skip

FLAGS = {
    "ADD": {"chown", "chmod", "link", "keep-git-dir", "checksum"},
    "COPY": {"chown", "chmod", "from", "link"},
    "FROM": {"platform"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
    "RUN": {"mount", "network"},
}
#: What only BuildKit does, and dockerd's classic builder refuses or, worse, passes over; a RUN with one is refused when it is run.
BUILDKIT_FLAGS = {"ADD": {"keep-git-dir", "checksum"}}
#: How a layer is made is nobody's concern here: taken, and without effect, as in dockerd.
BOOLEAN_FLAGS = {"link"}

_TWO = "at least two arguments, but only one was provided. Destination could not be determined"
NEEDED = {
    "ADD": _TWO,
    "COPY": _TWO,
    "FROM": "either one or three arguments",
    "MAINTAINER": "exactly one argument",
    "STOPSIGNAL": "exactly one argument",
    "USER": "exactly one argument",
    "WORKDIR": "exactly one argument",
}

#: A word that is so near is worth a question; as git has it.
_NEAR = 3

_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")


class DockerfileError(InvalidParameter):
    """The Dockerfile cannot be read; the text says which line."""


@dataclass(frozen=True)
class Instruction:
    """One instruction. ``text`` is what follows name and flags, ``words`` its JSON array if it has one."""

    name: str
    text: str
    line: int
    flags: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] | None = None
    original: str = ""
    escape: str = "\\"

    def arguments(self) -> list[str]:
        """Return the JSON array, or the text split at white space."""
        return list(self.words) if self.words is not None else self.text.split()

    def sources_and_target(self) -> list[str]:
        """Return the words of COPY and ADD, unexpanded: two at least. Raises DockerfileError."""
        found = self.arguments()
        if len(found) < 2:
            raise self.fault(f"{self.name} requires {_TWO}")
        return found

    def fault(self, what: str) -> DockerfileError:
        """Return an error that names the line."""
        return DockerfileError(f"dockerfile parse error on line {self.line}: {what}")


def needs_buildkit(flag: str) -> str:
    """Return what the classic builder says to a flag that it knows and has no way to follow."""
    return (
        f"the --{flag} option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ to learn how to build images "
        "with BuildKit enabled"
    )


def parse(text: str, warn: Callable[[str], None] = lambda text: None) -> list[Instruction]:
    """Parse a whole Dockerfile. Raises DockerfileError; ``warn`` is told of what will be an error one day."""
    lines = text.removeprefix("\ufeff").splitlines()
    escape = "\\"
    looking, chosen = True, False
    found: list[Instruction] = []
    current = ""
    start = 0
    continued = empty = False
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if looking:
            match = _DIRECTIVE.fullmatch(stripped)
            if match and match[1].lower() == "escape":
                if match[2] not in ("\\", "`"):
                    raise unreadable(f"invalid escape token '{match[2]}' does not match ` or \\")
                if chosen:
                    raise unreadable("only one escape parser directive can be used")
                escape, chosen = match[2], True
                continue
            looking = bool(match)
        if stripped.startswith("#") or (continued and not stripped):
            empty = empty or not stripped
            continue
        if not stripped and not continued:
            continue
        if not continued:
            start, current = number, ""
        content = line if continued else line.lstrip()
        trimmed = content.rstrip()
        ending = re.search(re.escape(escape) + r"[ \t]*$", trimmed)
        if ending and not trimmed.endswith(escape * 2):
            current += trimmed[: ending.start()]
            continued = True
            continue
        current += trimmed
        if empty:
            warn(f"[WARNING]: Empty continuation line found in: {current}\n")
        continued = empty = False
        found.append(_instruction(current, start, escape))
    if continued and current.strip():
        found.append(_instruction(current, start, escape))
    if not found:
        raise unreadable("file with no instructions")
    return found


def unreadable(what: str) -> DockerfileError:
    """Return an error about the file's form, found before any line means something."""
    return DockerfileError(f"failed to parse Dockerfile: {what}")


def parse_line(text: str, line: int = 1, escape: str = "\\") -> Instruction:
    """Parse a single instruction, as ONBUILD and --change have them. Raises DockerfileError."""
    return _instruction(text.strip(), line, escape)


def _instruction(text: str, line: int, escape: str) -> Instruction:
    name, _, rest = text.strip().partition(" ") if " " in text.strip() else (text.strip(), "", "")
    if "\t" in name:
        name, _, rest = text.strip().replace("\t", " ", 1).partition(" ")
    name = name.upper()
    shown = text.strip()
    rest = rest.strip()
    if name not in INSTRUCTIONS:
        meant = suggestion(name, INSTRUCTIONS)
        raise DockerfileError(f"dockerfile parse error on line {line}: unknown instruction: {name}{meant}")
    flags: dict[str, str] = {}
    if name in FLAGS:
        flags, rest = _flags(name, rest, line)
    if not rest and name not in ("RUN", "CMD", "ENTRYPOINT"):
        needed = NEEDED.get(name, "at least one argument")
        raise DockerfileError(f"dockerfile parse error on line {line}: {name} requires {needed}")
    if name in ("RUN", "COPY", "ADD") and re.search(r"(?:^|\s)<<-?(['\"]?)[A-Za-z_][A-Za-z0-9_]*\1", rest):
        raise DockerfileError(
            f"dockerfile parse error on line {line}: here-documents need BuildKit: use docker buildx with a "
            "docker-container builder, or write the text to a file"
        )
    words = None
    if name in ("ADD", "CMD", "COPY", "ENTRYPOINT", "RUN", "SHELL", "VOLUME", "HEALTHCHECK"):
        body = rest
        if name == "HEALTHCHECK":
            body = rest.partition(" ")[2].strip() if rest[:3].upper() == "CMD" else ""
        words = json_words(body)
    return Instruction(name, rest, line, flags, words, shown, escape)


def json_words(text: str) -> tuple[str, ...] | None:
    """Return a JSON array of strings; None when the text is anything else."""
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return tuple(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else None


def _flags(name: str, rest: str, line: int) -> tuple[dict[str, str], str]:
    flags: dict[str, str] = {}
    while rest.startswith("--"):
        word, _, remainder = rest.partition(" ")
        if word == "--":
            return flags, remainder.strip()
        key, equals, value = word[2:].partition("=")
        if key not in FLAGS[name]:
            meant = suggestion(key, FLAGS[name])
            raise DockerfileError(f"dockerfile parse error on line {line}: unknown flag: {key}{meant}")
        if key in BUILDKIT_FLAGS.get(name, ()):
            raise DockerfileError(needs_buildkit(key))
        if key in BOOLEAN_FLAGS:
            value = value or "true"
            if value not in ("true", "false"):
                raise DockerfileError(
                    f"dockerfile parse error on line {line}: expecting boolean value for flag {key}, not: {value}"
                )
        elif not equals:
            raise DockerfileError(f"dockerfile parse error on line {line}: missing a value on flag: {key}")
        if key in flags:
            raise DockerfileError(f"dockerfile parse error on line {line}: duplicate flag specified: {key}")
        flags[key] = value.strip("\"'")
        rest = remainder.strip()
    return flags, rest


def suggestion(word: str, known: Collection[str]) -> str:
    """Return a question after a word that nearly is a known one, or nothing."""
    nearest = min(sorted(known), key=lambda each: _distance(word.lower(), each.lower()))
    return f" (did you mean {nearest}?)" if _distance(word.lower(), nearest.lower()) < _NEAR else ""


def _distance(one: str, other: str) -> int:
    """Return how many letters have to be put in, taken out or changed."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, against in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != against))
    return row[-1]


def pairs(instruction: Instruction, *, old_form: bool = True) -> list[tuple[str, str]]:
    """Return the names and values of ENV and LABEL, unexpanded. Raises DockerfileError."""
    words = split_quoted(instruction.text, instruction.escape)
    if not words:
        raise instruction.fault(f"{instruction.name} requires at least one argument")
    if "=" not in words[0]:
        if not old_form or len(words) < 2:
            raise unreadable(f"{instruction.name} must have two arguments")
        name = words[0]
        return [(name, instruction.text[len(name) :].strip())]
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise unreadable(f'Syntax error - can\'t find = in "{word}". Must be of the form: name=value')
        if not name:
            raise instruction.fault(f"{instruction.name} names can not be blank")
        found.append((name, value))
    return found


@dataclass(frozen=True)
class Stage:
    """One FROM and what follows it."""

    base: Instruction
    image: str
    name: str
    steps: tuple[Instruction, ...]


def stages(instructions: Sequence[Instruction]) -> tuple[list[Instruction], list[Stage]]:
    """Return the ARGs before the first FROM, and the stages. Raises DockerfileError."""
    first: list[Instruction] = []
    found: list[Stage] = []
    for instruction in instructions:
        if instruction.name == "FROM":
            words = instruction.text.split()
            if len(words) == 3 and words[1].upper() == "AS":
                name = words[2].lower()
                if not re.fullmatch(r"[a-z][a-z0-9-_.]*", name):
                    raise instruction.fault(
                        f'invalid name for build stage: "{words[2]}", name can\'t start with a number or contain symbols'
                    )
            elif len(words) == 1:
                name = ""
            else:
                raise instruction.fault("FROM requires either one or three arguments")
            found.append(Stage(instruction, words[0], name, ()))
        elif not found:
            if instruction.name != "ARG":
                raise DockerfileError("no build stage in current context")
            first.append(instruction)
        else:
            last = found[-1]
            found[-1] = Stage(last.base, last.image, last.name, (*last.steps, instruction))
    if not found:
        raise DockerfileError("no build stage in current context")
    return first, found
