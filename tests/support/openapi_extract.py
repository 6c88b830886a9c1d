"""Extract the shape of the Engine API (operations, statuses, schemas; no prose) from its specification.

``python -m tests.support.openapi_extract SPECIFICATION`` writes engine_api.json beside this file. Source of the
facts: the Engine API specification, version 1.51.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).with_name("engine_api.json")
PROSE = {"description", "summary", "example", "examples", "tags", "externalDocs", "title", "operationId", "x-go-name"}


def strip(value: Any, *, names: bool = False) -> Any:
    """Return the value without prose. ``names``: the keys are names of fields, not keywords."""
    if isinstance(value, dict):
        return {
            key: strip(part, names=key in ("properties", "definitions", "paths", "responses") and not names)
            for key, part in value.items()
            if names or (key not in PROSE and not str(key).startswith("x-go"))
        }
    if isinstance(value, list):
        return [strip(part) for part in value]
    return value


def extract(specification: Path) -> dict[str, Any]:
    """Return what the tests check against."""
    spec = yaml.safe_load(specification.read_text())
    return {
        "version": spec["info"]["version"],
        "paths": {path: strip(item) for path, item in spec["paths"].items()},
        "definitions": strip(spec["definitions"], names=True),
    }


def main() -> int:
    """Write the extract; a new version of the API shows as a change of the file."""
    TARGET.write_text(json.dumps(extract(Path(sys.argv[1])), separators=(",", ":"), sort_keys=True, default=str) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
