"""What clients ask of a Dockerfile without building it: which targets it has, and which parameters one of them takes.

Answers are named texts, as BuildKit's frontend gives them: JSON for programs, a table for people.
"""

import base64
import contextlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moorage_guest.images.build import dialect
from moorage_guest.images.build.board import Board
from moorage_guest.images.build.contexts import Contexts, Text
from moorage_guest.images.build.dialect import Stage, Statement
from moorage_guest.images.build.planning import Planner
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.seams import Reporter, Session
from moorage_guest.images.build.words import Expansion, split_quoted

_VERSION = "1.0.0"


class _Asked:
    """A Dockerfile that was read, and what is wanted of it."""

    def __init__(self, request: Request, text: Text) -> None:
        parsed = dialect.parse(text.data, text.name)
        self.first, self.stages = dialect.stages(parsed.statements)
        self.request = request
        self._text = text
        self._lines = text.data.decode("utf-8", "replace").splitlines()

    def where(self, statement: Statement) -> dict[str, Any]:
        """Return a statement's place."""
        return {"ranges": [{"start": {"line": statement.line}, "end": {"line": statement.last or statement.line}}]}

    def comment(self, statement: Statement, name: str) -> str:
        """Return what the comment right above a statement says of a name: the rest of the line that begins with it."""
        position = statement.line - 2
        found = ""
        while position >= 0 and (match := re.fullmatch(r"\s*#\s*(.*?)\s*", self._lines[position])):
            word, _, rest = match[1].partition(" ")
            if name and word == name:
                found = rest.strip()
            position -= 1
        return found

    @property
    def sources(self) -> list[str]:
        """The texts that places are in."""
        return [base64.b64encode(self._text.data).decode()]


async def answer(
    name: str, request: Request, session: Session, reporter: Reporter, tmp: Path
) -> dict[str, bytes] | None:
    """Answer a request by its name (``frontend.outline``); None when nobody knows it. Raises BuildError."""
    if name == "frontend.subrequests.describe":
        return _texts(_DESCRIPTIONS, _described)
    if name not in _ANSWERS:
        return None
    async with contextlib.AsyncExitStack() as stack:
        contexts = Contexts(request, session, Board(reporter, "build:asked"), tmp, stack)
        text = await contexts.dockerfile()
    make, show = _ANSWERS[name]
    return _texts(make(_Asked(request, text)), show)


def _texts(value: Any, show: Callable[[Any], str]) -> dict[str, bytes]:
    return {
        "result.json": json.dumps(value, indent=2).encode(), "result.txt": show(value).encode(), "version": _VERSION.encode(),
    }  # fmt: skip


def _table(rows: Sequence[Sequence[str]], gap: int) -> str:
    """Return rows below each other, so much room between columns."""
    widths = [max(len(row[column]) for row in rows) + gap for column in range(len(rows[0]) - 1)]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) + "\n" for row in rows
    )


def _kept(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in ("", None, False)}


# -- targets --------------------------------------------------------------------------------------------------------------


def _targets(asked: _Asked) -> dict[str, Any]:
    last = len(asked.stages) - 1
    found = []
    for stage in asked.stages:
        platform = stage.base.flags.get("platform", "")
        name = _own_name(stage)
        found.append(
            _kept(
                name=name, default=stage.index == last, description=asked.comment(stage.base, name), base=stage.image,
                platform=platform, location=asked.where(stage.base),
            )
        )  # fmt: skip
    return {"targets": found, "sources": asked.sources}


def _own_name(stage: Stage) -> str:
    """Return a stage's name as it was written."""
    return stage.base.text.split()[2] if stage.name else ""


def _shown_targets(value: Mapping[str, Any]) -> str:
    rows = [["TARGET", "DESCRIPTION"]]
    for each in value["targets"]:
        name = each.get("name") or ("(default)" if each.get("default") else "")
        if each.get("name") and each.get("default"):
            name = f"{name} (default)"
        rows.append([name, each.get("description", "")])
    return _table(rows, 1)


# -- the outline of a target -------------------------------------------------------------------------------------------------


def _outline(asked: _Asked) -> dict[str, Any]:
    planner = Planner(asked.request, asked.first, asked.stages)
    needed = [asked.stages[index] for index in planner.needed]
    steps = [step for stage in needed for step in stage.steps]
    target = asked.stages[planner.target]
    name = asked.request.target
    return {
        **_kept(name=name, description=asked.comment(target.base, _own_name(target)) if name else ""),
        **_present(
            args=list(_arguments(asked, planner, steps)),
            secrets=list(_mounted(asked, steps, "secret")),
            ssh=list(_mounted(asked, steps, "ssh")),
        ),
        "sources": asked.sources,
    }


def _present(**lists: list[Any]) -> dict[str, list[Any]]:
    return {key: value for key, value in lists.items() if value}


def _arguments(asked: _Asked, planner: Planner, steps: Iterable[Statement]) -> Iterable[dict[str, Any]]:
    """Yield the arguments that the needed stages take, those from before the first stage at their own place."""
    outer = {word.partition("=")[0]: each for each in asked.first for word in split_quoted(each.text, each.escape)}
    given = asked.request.build_args
    found: dict[str, tuple[Statement, str]] = {}
    for step in steps:
        if step.name != "ARG":
            continue
        for word in split_quoted(step.text, step.escape):
            name, equals, raw = word.partition("=")
            if name in found or name in planner.platform_args:
                continue
            value = Expansion({**planner.global_args, **given}, step.escape).one(raw) if equals else ""
            found[name] = outer.get(name, step), given.get(name, value or planner.global_args.get(name, ""))
    for name in sorted(found, key=lambda each: found[each][0].line):
        statement, value = found[name]
        comment = asked.comment(statement, name)
        yield _kept(name=name, description=comment, value=value, location=asked.where(statement))


def _mounted(asked: _Asked, steps: Iterable[Statement], kind: str) -> Iterable[dict[str, Any]]:
    """Yield what commands of the needed stages have mounted of a kind."""
    seen: set[str] = set()
    for step in steps:
        for text in step.values("mount"):
            fields = {key.lower(): value for key, _, value in (each.partition("=") for each in text.split(","))}
            if fields.get("type") != kind:
                continue
            target = fields.get("target") or fields.get("dst") or fields.get("destination") or ""
            name = fields.get("id") or (target.rpartition("/")[2] if kind == "secret" else "default")
            if name not in seen:
                seen.add(name)
                required = fields.get("required", "false" if "required" not in fields else "true")
                yield _kept(name=name, required=required in ("", "1", "true"), location=asked.where(step))


def _shown_outline(value: Mapping[str, Any]) -> str:
    out = ""
    if value.get("name") or value.get("description"):
        rows = [["TARGET:", value.get("name", "(default)")]]
        if value.get("description"):
            rows.append(["DESCRIPTION:", value["description"]])
        out += _table(rows, 1) + "\n"
    if arguments := value.get("args"):
        rows = [["BUILD ARG", "VALUE", "DESCRIPTION"]]
        rows += [[each["name"], each.get("value", ""), each.get("description", "")] for each in arguments]
        out += _table(rows, 3) + "\n"
    for title, key in (("SECRET", "secrets"), ("SSH", "ssh")):
        if mounts := value.get(key):
            rows = [[title, "REQUIRED"], *([each["name"], "true" if each.get("required") else ""] for each in mounts)]
            out += _table(rows, 3) + "\n"
    return out


# -- what may be asked ---------------------------------------------------------------------------------------------------------

_ANSWERS: Mapping[str, tuple[Callable[[_Asked], dict[str, Any]], Callable[[Any], str]]] = {
    "frontend.outline": (_outline, _shown_outline),
    "frontend.targets": (_targets, _shown_targets),
}


def _description(name: str, text: str, options: list[dict[str, str]] | None) -> dict[str, Any]:
    metadata = [{"name": each, "description": ""} for each in ("result.json", "result.txt")]
    return {
        "name": f"frontend.{name}", "version": _VERSION, "type": "rpc", "description": text, "opts": options, "inputs": None,
        "metadata": metadata, "refs": None,
    }  # fmt: skip


_DESCRIPTIONS = [
    _description(
        "outline",
        "List all parameters current build target supports",
        [{"name": "target", "description": "Target build stage"}],
    ),
    _description("targets", "List all targets current build supports", []),
    _description("subrequests.describe", "List available subrequest types", None),
]


def _described(value: Sequence[Mapping[str, str]]) -> str:
    rows = [[each["name"].removeprefix("frontend."), each["version"], each["description"]] for each in value]
    return _table([["NAME", "VERSION", "DESCRIPTION"], *rows], 1)
