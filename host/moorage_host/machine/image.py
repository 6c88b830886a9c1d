"""The guest image's folder: read its manifest, check its files against it."""

from __future__ import annotations

import json
from pathlib import Path

from moorage_contract import image_manifest as manifest
from moorage_contract.image_manifest import Manifest, ManifestError

from moorage_host.errors import ErrorCode, HostError
from moorage_host.files import write_atomically

_BUILD = "build it again with `moorage image build`"


def checked(folder: Path, stamp: Path) -> Manifest:
    """The manifest of the image in `folder`, its files checked by sha256. Blocks for a second when they changed.

    `stamp` remembers sizes and times of the files that were found good, so that the next start need not read them again.
    """
    try:
        found = manifest.read(folder)
        files = [folder / file.name for file in (found.kernel, found.initrd, found.root)]
        state = {
            str(path): [path.stat().st_size, path.stat().st_mtime_ns]
            for path in [folder / manifest.NAME, *files]
            if path.is_file()
        }
        if len(state) == len(files) + 1 and _read(stamp) == state:
            return found
        faults = manifest.verify(folder)
    except ManifestError as error:
        raise HostError(error.message, hint=error.hint, code=ErrorCode.NOT_FOUND) from error
    except OSError as error:
        raise HostError(f"the image in {folder} cannot be read: {error}", hint=_BUILD) from error
    if faults:
        raise HostError(f"the image in {folder} is damaged: {'; '.join(faults)}", hint=_BUILD)
    write_atomically(stamp, json.dumps(state))
    return found


def _read(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
