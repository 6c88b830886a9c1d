import hashlib
import json
from pathlib import Path

import pytest
from moorage_host import docker_context
from moorage_host.errors import HostError

SOCKET = Path("/state/docker.sock")


def meta(config: Path) -> Path:
    return config / "contexts" / "meta" / hashlib.sha256(b"moorage").hexdigest() / "meta.json"


def test_context_is_made_and_removed_without_a_trace(tmp_path: Path) -> None:
    docker_context.create(tmp_path, "moorage", SOCKET)
    docker_context.create(tmp_path, "moorage", SOCKET)
    assert json.loads(meta(tmp_path).read_text())["Endpoints"]["docker"]["Host"] == "unix:///state/docker.sock"
    docker_context.remove(tmp_path, "moorage")
    docker_context.remove(tmp_path, "moorage")
    assert not meta(tmp_path).parent.exists()


@pytest.mark.parametrize("content", ['{"Name": "moorage", "Metadata": {}, "Endpoints": {}}', "not json", "{}"])
def test_somebody_elses_context_is_left_alone(tmp_path: Path, content: str) -> None:
    meta(tmp_path).parent.mkdir(parents=True)
    meta(tmp_path).write_text(content)
    with pytest.raises(HostError, match="not Moorage's"):
        docker_context.create(tmp_path, "moorage", SOCKET)
    docker_context.remove(tmp_path, "moorage")
    assert meta(tmp_path).read_text() == content
    assert not docker_context.exists(tmp_path, "moorage")
