"""Instructions that only change an image's configuration; also `docker commit --change` and `docker import --change`.

A configuration is the PascalCase object that images carry; every function returns a new one.
"""

import copy
import posixpath
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.dockerfile import Instruction, pairs, parse_line
from moorage_guest.images.build.words import Expansion

Config = dict[str, Any]

#: In the order in which dockerd shows them.
HEALTH_TIMES = ("Interval", "Timeout", "StartPeriod", "StartInterval")

DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What --change may contain.
CHANGES = frozenset(
    {
        "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME",
        "WORKDIR",
    }
)  # fmt: skip

_SIGNALS = frozenset(each.name.removeprefix("SIG") for each in signal.Signals) | {"CLD", "POLL", "IOT", "STKFLT"}
_UNITS = {"ns": 1, "us": 1000, "µs": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}


def apply_changes(config: Mapping[str, Any], changes: Sequence[str]) -> Config:
    """Return the configuration with instructions applied; several may stand in one text, a line each. Raises InvalidParameter."""
    result = copy.deepcopy(dict(config))
    cmd_set = False
    for text in changes:
        for line in text.splitlines():
            if not line.strip():
                continue
            name = line.split()[0].upper()
            if name not in CHANGES:
                raise InvalidParameter(f"{name} is not a valid change command")
            instruction = parse_line(line)
            expansion = Expansion(environment(result), instruction.escape)
            result = apply(instruction, result, expansion, cmd_set=cmd_set)
            cmd_set = cmd_set or name == "CMD"
    return result


def check(instruction: Instruction) -> None:
    """Find what is wrong with an instruction whatever its variables are, before anything is built. Raises InvalidParameter."""
    name = instruction.name
    if name in ("ENV", "LABEL"):
        pairs(instruction)
    elif name in ("COPY", "ADD"):
        instruction.sources_and_target()
    elif name == "VOLUME" and instruction.words is not None and not all(word.strip() for word in instruction.words):
        raise instruction.fault("VOLUME specified can not be an empty string")
    elif name in ("HEALTHCHECK", "ONBUILD", "SHELL"):
        _HANDLERS[name](instruction, {}, Expansion({}))


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of a configuration."""
    found = {}
    for entry in config.get("Env") or []:
        name, equals, value = str(entry).partition("=")
        if equals:
            found[name] = value
    return found


def shell_of(config: Mapping[str, Any]) -> list[str]:
    """Return what the shell form is put behind."""
    return list(config.get("Shell") or DEFAULT_SHELL)


def command(instruction: Instruction, config: Mapping[str, Any]) -> list[str]:
    """Return the words of RUN, CMD or ENTRYPOINT: its JSON array, or its text behind the shell."""
    if instruction.words is not None:
        return list(instruction.words)
    return [*shell_of(config), *([instruction.text] if instruction.text else [])]


def apply(
    instruction: Instruction, config: Mapping[str, Any], expansion: Expansion, *, cmd_set: bool = False
) -> Config:
    """Return the configuration after one instruction. Raises InvalidParameter."""
    new = copy.deepcopy(dict(config))
    handler = _HANDLERS[instruction.name]
    if instruction.name == "ENTRYPOINT":
        _entrypoint(instruction, new, cmd_set)
    else:
        handler(instruction, new, expansion)
    return new


def _cmd(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    config["Cmd"] = command(instruction, config)


def _entrypoint(instruction: Instruction, config: Config, cmd_set: bool) -> None:
    config["Entrypoint"] = command(instruction, config) if instruction.text else None
    if instruction.words is not None and not instruction.words:
        config["Entrypoint"] = None
    if not cmd_set:
        config.pop("Cmd", None)


def _env(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    entries = list(config.get("Env") or [])
    for raw_name, raw_value in pairs(instruction):
        name = expansion.one(raw_name)
        if not name:
            raise instruction.fault("ENV names can not be blank")
        entry = f"{name}={expansion.one(raw_value)}"
        for index, old in enumerate(entries):
            if old.partition("=")[0] == name:
                entries[index] = entry
                break
        else:
            entries.append(entry)
    config["Env"] = entries


def _label(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    labels = dict(config.get("Labels") or {})
    for raw_name, raw_value in pairs(instruction):
        name = expansion.one(raw_name)
        if not name:
            raise instruction.fault("LABEL names can not be blank")
        labels[name] = expansion.one(raw_value)
    config["Labels"] = labels


def _expose(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for raw in instruction.text.split():
        for word in expansion.many(raw):
            inside, slash, protocol = word.rpartition(":")[2].partition("/")
            if slash and protocol.lower() not in ("tcp", "udp", "sctp"):
                raise InvalidParameter(f"Invalid proto: {protocol}")
            match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", inside)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
            if not 0 < first <= last <= 65535:
                raise InvalidParameter(f"Invalid containerPort: {inside}")
            for port in range(first, last + 1):
                ports[f"{port}/{protocol.lower() or 'tcp'}"] = {}
    config["ExposedPorts"] = ports


def _user(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    config["User"] = expansion.one(instruction.text)


def _workdir(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    wanted = expansion.one(instruction.text)
    config["WorkingDir"] = posixpath.normpath(posixpath.join("/", str(config.get("WorkingDir") or ""), wanted)).replace(
        "//", "/"
    )


def _volume(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    volumes = dict(config.get("Volumes") or {})
    for raw in instruction.arguments():
        name = expansion.one(raw).strip()
        if not name:
            raise instruction.fault("VOLUME specified can not be an empty string")
        volumes[name] = {}
    config["Volumes"] = volumes


def _stop_signal(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    wanted = expansion.one(instruction.text)
    name = wanted.upper().removeprefix("SIG")
    if name not in _SIGNALS and not re.fullmatch(r"[1-9]|[1-5]\d|6[0-4]|RTM(IN(\+\d+)?|AX(-\d+)?)", name):
        raise InvalidParameter(f"invalid signal: {wanted}")
    config["StopSignal"] = wanted


def _onbuild(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    name = instruction.text.split(maxsplit=1)[0].upper()  # what else is wrong is found when it is triggered
    if name == "ONBUILD":
        raise instruction.fault("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if name in ("FROM", "MAINTAINER"):
        raise instruction.fault(f"{name} isn't allowed as an ONBUILD trigger")
    config["OnBuild"] = [*(config.get("OnBuild") or []), instruction.text]


def _shell(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    if instruction.words is None:
        raise instruction.fault("SHELL requires the arguments to be in JSON form")
    if not instruction.words:
        raise instruction.fault("SHELL requires at least one argument")
    config["Shell"] = list(instruction.words)


def _healthcheck(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    kind, _, rest = instruction.text.partition(" ")
    kind = kind.upper()
    if kind == "NONE":
        if rest.strip():
            raise instruction.fault("HEALTHCHECK NONE takes no arguments")
        config["Healthcheck"] = {**_kept_health(config), "Test": ["NONE"]}
        return
    if kind != "CMD":
        raise instruction.fault(f'Unknown type "{kind}" in HEALTHCHECK (try CMD)')
    rest = rest.strip()
    if not rest or (instruction.words is not None and not instruction.words):
        raise instruction.fault("Missing command after HEALTHCHECK CMD")
    test: Config = {"Test": ["CMD", *instruction.words] if instruction.words is not None else ["CMD-SHELL", rest]}
    for flag, name in (
        ("interval", "Interval"),
        ("timeout", "Timeout"),
        ("start-period", "StartPeriod"),
        ("start-interval", "StartInterval"),
    ):
        if flag in instruction.flags:
            test[name] = duration(instruction, flag, instruction.flags[flag])
    if "retries" in instruction.flags:
        text = instruction.flags["retries"]
        if re.fullmatch(r"-\d+", text):
            raise instruction.fault(f"--retries cannot be negative ({text})")
        if not re.fullmatch(r"\d+", text):
            raise instruction.fault(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        test["Retries"] = int(text)
    config["Healthcheck"] = {**_kept_health(config), **test}


def _kept_health(config: Mapping[str, Any]) -> Config:
    """Return what of the last health check stays where the next one says nothing, as in dockerd."""
    return {key: value for key, value in (config.get("Healthcheck") or {}).items() if key != "Test"}


def shown_health(health: Mapping[str, Any]) -> str:
    """Return a health check as dockerd's history has it, which is how Go prints one when asked to quote everything."""
    words = " ".join(f'"{_escaped(str(word))}"' for word in health.get("Test") or ())
    times = " ".join(f'"{shown_duration(int(health.get(key) or 0))}"' for key in HEALTH_TIMES)
    retries = int(health.get("Retries") or 0)
    quoted = chr(retries) if 32 <= retries < 127 and retries not in (39, 92) else f"\\x{retries:02x}"
    return f"&{{[{words}] {times} '{quoted}'}}"


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t").replace("\n", "\\n")


def shown_duration(nanoseconds: int) -> str:
    """Return a duration as Go prints it: 1m30s, 1.5s, 100ms."""
    if nanoseconds < 10**9:
        unit, size = next(((u, s) for u, s in (("ms", 10**6), ("µs", 1000), ("ns", 1)) if nanoseconds >= s), ("s", 1))
        return f"{nanoseconds / size:g}{unit}"
    seconds, fraction = divmod(nanoseconds, 10**9)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    shown = f"{seconds}{f'.{fraction:09d}'.rstrip('0') if fraction else ''}s"
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{shown}"


def duration(instruction: Instruction, flag: str, text: str) -> int:
    """Read a Go duration as nanoseconds. Raises InvalidParameter."""
    found = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)", text)
    if text != "0" and (not found or "".join(n + u for n, u in found) != text):
        raise instruction.fault(f'time: invalid duration "{text}"')
    value = int(sum(float(number) * _UNITS[unit] for number, unit in found))
    if value and value < 10**6:
        raise instruction.fault(f'Interval "{flag}" cannot be less than 1ms')
    return value


def _maintainer(instruction: Instruction, config: Config, expansion: Expansion) -> None:
    return None


_HANDLERS = {
    "CMD": _cmd,
    "ENTRYPOINT": _cmd,
    "ENV": _env,
    "EXPOSE": _expose,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "SHELL": _shell,
    "STOPSIGNAL": _stop_signal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
