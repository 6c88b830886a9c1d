"""Makes docs/engine-api.md: every operation of the Engine API and what the engine's routes do with it.

``python -m tests.support.api_table`` writes the page; a test fails when it is out of date.
"""

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any

import moorage_guest.api
from moorage_guest.api.server import Route, RouteTable

from tests.support.openapi import specification

PAGE = Path(__file__).parents[2] / "docs" / "engine-api.md"
HEAD = """# Engine API

Made from the daemon's routes; `./check` fails when it is out of date. Versions 1.24 to 1.51 are negotiated. *off* means: answered
as dockerd answers while that feature is off.

| operation | | module |
|---|---|---|
"""


def routes() -> list[tuple[Route, str]]:
    """Return all routes of the API package and the module each belongs to; their services are not there, nor called."""
    found: list[tuple[Route, str]] = []
    for info in pkgutil.iter_modules(moorage_guest.api.__path__):
        module: Any = importlib.import_module(f"moorage_guest.api.{info.name}")
        make = getattr(module, "routes", None)
        if make is not None:
            missing: list[Any] = [None] * (make.__code__.co_argcount - len(make.__defaults__ or ()))
            found += [(route, info.name) for route in make(*missing)]
    return found


def operations() -> list[tuple[str, str]]:
    """Return method and path of the specification's operations, in its order."""
    verbs = ("get", "head", "post", "put", "delete")
    return [
        (verb.upper(), path)
        for path, item in sorted(specification()["paths"].items())
        for verb in verbs
        if verb in item
    ]


def table() -> dict[tuple[str, str], str]:
    """Return the module that answers each operation, "" where none does."""
    modules = {(route.method, route.path): name for route, name in routes()}
    find = RouteTable([route for route, _ in routes()]).find
    answered = {}
    for method, path in operations():
        found = find(method, path.replace("{", "").replace("}", ""))
        answered[method, path] = modules[found[0].method, found[0].path] if found else ""
    return answered


def page() -> str:
    """Return the text of docs/engine-api.md."""
    lines = []
    for (method, path), module in table().items():
        state = "missing" if not module else "off" if module == "off" else "implemented"
        lines.append(f"| `{method} {path}` | {state} | {f'`api/{module}.py`' if module else ''} |\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.exit(0)
