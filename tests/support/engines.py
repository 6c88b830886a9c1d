"""Built engines for tests: this tree's own packages with another version, whole or broken."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PACKAGES = {
    "moorage_guest": _ROOT / "guest/engine/moorage_guest",
    "moorage_contract": _ROOT / "guest/contract/moorage_contract",
}


def build_engine(file: Path, version: str, changes: Mapping[str, str] | None = None) -> str:
    """Write an engine of that version to `file` and return its sha256. `changes` replaces the text of files."""
    wanted = dict(changes or {})
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        for name, folder in _PACKAGES.items():
            for path in sorted(folder.rglob("*")):
                if path.is_dir() or "__pycache__" in path.parts:
                    continue
                inside = f"{name}/{path.relative_to(folder)}"
                data = path.read_bytes()
                if inside == "moorage_contract/version.py":
                    lines = [
                        f'ENGINE_VERSION = "{version}"' if line.startswith("ENGINE_VERSION") else line
                        for line in data.decode().splitlines()
                    ]
                    data = "\n".join(lines).encode()
                if inside in wanted:
                    data = wanted.pop(inside).encode()
                member = tarfile.TarInfo(inside)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    assert not wanted, f"no such files in an engine: {sorted(wanted)}"
    return hashlib.sha256(file.read_bytes()).hexdigest()
