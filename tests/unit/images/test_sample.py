"""The sample image is a docker-archive whose digests are right."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile

from moorage_images import sample


def test_layer_has_the_digest_its_configuration_names() -> None:
    with tarfile.open(fileobj=io.BytesIO(sample.archive())) as tar:
        members = {m.name: tar.extractfile(m) for m in tar.getmembers()}
        content = {name: file.read() for name, file in members.items() if file is not None}
    manifest = json.loads(content["manifest.json"])[0]
    assert manifest["RepoTags"] == ["busybox:latest"]
    config = json.loads(content[manifest["Config"]])
    layer = content[manifest["Layers"][0]]
    assert config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert tar.getmember("bin/sh").linkname == "busybox"


def test_archive_has_the_same_bytes_each_time() -> None:
    assert sample.archive() == sample.archive()
