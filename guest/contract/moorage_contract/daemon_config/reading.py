"""From the text of daemon.json and the command line's flags to a DaemonConfig, or to all faults at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from moorage_contract.daemon_config.declaration import Setting, unset
from moorage_contract.daemon_config.document import Document, Json, Path, SyntaxFault, read
from moorage_contract.daemon_config.errors import CONFLICT, UNKNOWN, ConfigError, Fault, FaultKind, Mistake
from moorage_contract.daemon_config.kinds import STOCK_RUNTIMES, check_log_options
from moorage_contract.daemon_config.model import ALIASES, SECTIONS, SETTINGS, DaemonConfig
from moorage_contract.daemon_config.pipe import PIPE_REFUSAL, is_pipe_key

NO_FLAGS: Mapping[str, object] = {}
_MERGED_WITH_FLAGS = frozenset({"runtimes"})
_UNSET_TYPES: Mapping[type, tuple[type, ...]] = {str: (str,), int: (int, str), tuple: (list,), dict: (dict,)}


def parse(text: str, *, flags: Mapping[str, object] = NO_FLAGS) -> DaemonConfig:
    """Read a daemon.json; `flags` are the command line's values by key of daemon.json, as `flags_from_namespace` gives them.

    An empty text is an empty object. Raises ConfigError with every fault there is. Never looks at files or the system.
    """
    reader = _Reader(text, flags)
    config = reader.run()
    if config is None:
        raise ConfigError(reader.faults)
    return config


def check(text: str, *, flags: Mapping[str, object] = NO_FLAGS) -> list[Fault]:
    """Every fault of a daemon.json in the order of the text; empty when `parse` would succeed."""
    try:
        parse(text, flags=flags)
    except ConfigError as error:
        return list(error.faults)
    return []


def file_values(document: Document) -> dict[str, tuple[Json, Path]]:
    """Known values of a file by key, with the path at which each stands; keys of sections and older names are resolved.

    Null is no value, as in dockerd.
    """
    found: dict[str, tuple[Json, Path]] = {}
    for name, value in document.root.items():
        if name in SECTIONS and isinstance(value, dict):
            found.update(
                {key: (item, (name, key)) for key, item in value.items() if key in SETTINGS and item is not None}
            )
        elif value is not None and ALIASES.get(name, name) in SETTINGS:
            found[ALIASES.get(name, name)] = ([value] if name == "host-gateway-ip" else value, (name,))
    return found


def go_text(value: object) -> str:
    """Write a value as Go's %v does, for dockerd's sentences."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + " ".join(go_text(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{go_text(value[key])}" for key in sorted(value)) + "]"
    return "<nil>" if value is None else str(value)


def masked(key: str, value: object) -> object:
    """The value with the password of a proxy's address hidden."""
    if key in ("http-proxy", "https-proxy") and isinstance(value, str):
        try:
            parts = urlsplit(value)
            if parts.username is not None:
                return value.replace(parts.netloc.rpartition("@")[0], "xxxxx:xxxxx", 1)
        except ValueError:
            return value
    return value


class _Reader:
    """One reading; gathers faults on its way."""

    def __init__(self, text: str, flags: Mapping[str, object]) -> None:
        self.text = text
        self.flags = {key: value for key, value in flags.items() if value is not None}
        self.faults: list[Fault] = []
        self.notices: list[str] = []
        self.document = Document(text)

    def run(self) -> DaemonConfig | None:
        try:
            self.document = read(self.text)
        except SyntaxFault as fault:
            sentence = f"invalid JSON: {fault.message} (line {fault.line}, column {fault.column})"
            self.faults.append(Fault(FaultKind.SYNTAX, "", fault.line, fault.column, sentence))
            return None
        self.unknown_keys()
        self.duplicate_keys()
        values = file_values(self.document)
        self.conflicts(values)
        config = self.typed(values)
        self.across(config, values)
        return None if self.faults else config

    def fault(
        self, kind: FaultKind, key: str, message: str, path: Path, detail: str = "", *, at_key: bool = False
    ) -> None:
        member = self.document.find(path)
        if member is None:
            self.faults.append(Fault(kind, key, 0, 0, message, detail))
            return
        line, column = self.document.place(member.key_start if at_key else member.value_start)
        self.faults.append(Fault(kind, key, line, column, message, detail))

    def unknown_keys(self) -> None:
        for member in self.document.top_members():
            if member.key in SECTIONS and isinstance(member.value, dict):
                for key in member.value:
                    self.unknown(key, (member.key, key), lambda name: name in SETTINGS and bool(SETTINGS[name].section))
            elif member.key in SECTIONS:
                self.fault(
                    FaultKind.VALUE,
                    member.key,
                    f'{member.key}: expected an object such as {{"http-proxy": "http://proxy:80"}}',
                    member.path,
                )
            else:
                self.unknown(member.key, member.path, lambda name: name in SETTINGS or name in ALIASES)

    def unknown(self, key: str, path: Path, known: Callable[[str], bool]) -> None:
        if known(key):
            return
        if is_pipe_key(key):
            self.fault(FaultKind.REFUSED, key, f"{key}: {PIPE_REFUSAL}", path, at_key=True)
            return
        import difflib  # seldom needed, and large

        near = difflib.get_close_matches(key, [*SETTINGS, *SECTIONS], 1, 0.75)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        self.fault(FaultKind.UNKNOWN, key, f"{UNKNOWN}: {key}{hint}", path, key, at_key=True)

    def duplicate_keys(self) -> None:
        for member in self.document.duplicates:
            first = next(other for other in self.document.members if other.path == member.path)
            line, _ = self.document.place(first.key_start)
            place = self.document.place(member.key_start)
            self.faults.append(
                Fault(
                    FaultKind.VALUE,
                    member.key,
                    *place,
                    f"{member.key}: is there twice, first at line {line}; remove one",
                )
            )
        names = self.document.root
        for alias, key in ALIASES.items():
            if alias in names and key in names:
                self.fault(
                    FaultKind.VALUE,
                    key,
                    f"{alias} and {key} must not both be specified in the config file",
                    (alias,),
                    at_key=True,
                )

    def conflicts(self, values: Mapping[str, tuple[Json, Path]]) -> None:
        for key, flag in self.flags.items():
            if key not in values or key in _MERGED_WITH_FLAGS:
                continue
            value, path = values[key]
            detail = f"{key}: (from flag: {go_text(masked(key, flag))}, from file: {go_text(masked(key, value))})"
            self.fault(FaultKind.CONFLICT, key, f"{CONFLICT}: {detail}", path, detail, at_key=True)

    def typed(self, values: Mapping[str, tuple[Json, Path]]) -> DaemonConfig:
        attributes: dict[str, Any] = {}
        given: set[str] = set()
        for key, found in SETTINGS.items():
            if key in values:
                value, path = values[key]
                more = self.flags.get(key) if key in _MERGED_WITH_FLAGS else None
                if isinstance(value, dict) and isinstance(more, dict):
                    value = {**more, **value}
            elif key in self.flags:
                value, path = _json(self.flags[key]), ()
            else:
                continue
            given.add(key)
            self.one(found, value, path, attributes)
        return DaemonConfig(given=frozenset(given), notices=tuple(self.notices), **attributes)

    def one(self, found: Setting, value: Json, path: Path, attributes: dict[str, Any]) -> None:
        try:
            if unset(value) and type(value) in _UNSET_TYPES.get(type(found.default), ()):
                return
            checked = found.kind.check(value)
        except Mistake as mistake:
            said = str(mistake)
            message = (
                said if found.key in said or not said.startswith(("expected", "strconv")) else f"{found.key}: {said}"
            )
            self.fault(FaultKind.VALUE, found.key, message, (*path, *mistake.path) if path else ())
            return
        if checked == found.default:
            return
        if found.refusal:
            prefix = "" if found.refusal.startswith("DEPRECATED") else f"{found.key}: "
            self.fault(FaultKind.REFUSED, found.key, prefix + found.refusal, path, at_key=True)
            return
        if found.no_effect:
            self.notices.append(f"{found.key} has no effect: {found.no_effect}")
        attributes[found.attribute] = checked

    def across(self, config: DaemonConfig, values: Mapping[str, tuple[Json, Path]]) -> None:
        """Faults that only show between keys."""

        def at(key: str) -> Path:
            return values[key][1] if key in values else ()

        if config.bridge and config.bip:
            self.fault(
                FaultKind.VALUE,
                "bip",
                "You specified -b & --bip, mutually exclusive options. Please specify only one",
                at("bip"),
            )
        if config.default_runtime not in (*STOCK_RUNTIMES, *config.runtimes):
            text = f"specified default runtime '{config.default_runtime}' does not exist"
            self.fault(
                FaultKind.VALUE, "default-runtime", f"{text}; name one of runtimes, or runc", at("default-runtime")
            )
        if not config.iptables and not config.icc:
            text = "You specified --iptables=false with --icc=false. ICC=false uses iptables to function. Please set --icc or --iptables to true"
            self.fault(FaultKind.VALUE, "icc", text, at("icc"))
        for mistake in check_log_options(config.log_driver, config.log_opts):
            self.fault(
                FaultKind.VALUE, "log-opts", str(mistake), (*at("log-opts"), *mistake.path) if at("log-opts") else ()
            )
        labels: dict[str, str] = {}
        for text in config.labels:
            name, _, value = text.partition("=")
            if labels.setdefault(name, value) != value:
                self.fault(
                    FaultKind.VALUE,
                    "labels",
                    f"conflict labels for {name}={value} and {name}={labels[name]}",
                    at("labels"),
                )


def _json(value: object) -> Json:
    """Take a flag's value for JSON: tuples and mappings become lists and objects."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    raise TypeError(f"a flag's value is {type(value).__name__}")
