"""The YAML of device specifications: read as a YAML library reads it, or refused."""

import pytest
import yaml
from moorage_guest.oci.plainyaml import YamlError, parse

NVIDIA = """---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-modeset
  - path: /dev/nvidiactl
  hooks:
  - args:
    - nvidia-ctk
    - hook
    - --link
    - libcuda.so.1::/usr/lib/libcuda.so
    hookName: createContainer
    path: /usr/bin/nvidia-ctk
  mounts:
  - containerPath: /run/nvidia-persistenced/socket
    hostPath: /run/nvidia-persistenced/socket
    options:
    - ro
    - nosuid
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      fileMode: 438
      major: 195
  name: "0"
- name: all
  containerEdits: {}
kind: nvidia.com/gpu
"""


@pytest.mark.parametrize(
    "text",
    [
        NVIDIA,
        "",
        "# nothing\n",
        "a: 1\nb: -2\nc: true\nd: null\ne: ~\nf:\ng: 1.5\nh: text with:a colon\n",
        "a: 'it''s'  # said\nb: \"tab\\t\"\nc: x#y\nd: '#'\n",
        "- a\n- b: 1\n  c: 2\n-\n  - x\n  - y\n- - p\n  - q\n",
        "list:\n- a\n- b\nnext: [a, b, 3]\nquoted: [\"x, y\", 'it''s', plain text, 4]\nempty: []\nmap: {}\n",
        "deep:\n    deeper:\n        deepest: 1\nback: 2\n",
        '"quoted key": 1\nplain key: 2\n',
        "url: http://x/y?z#w\nmode: 0644\nversion: 1.2.3\n",
        "-\n  name: a\n-\n  name: b\n",
    ],
)
def test_it_is_read_as_a_library_reads_it(text: str) -> None:
    assert parse(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    ["a: &x 1\n", "a: |\n  text\n", "a: !!str 1\n", "a: 1\n---\nb: 2\n", "a: [\n", "a: 'x\n", "a: 1\n   b: 2\n", "a: {b: c}\n", "a: b: c\n", "a: 1\na: 2\n", "\ta: 1\n"],
)  # fmt: skip
def test_what_is_not_read_is_refused(text: str) -> None:
    with pytest.raises(YamlError, match="line"):
        parse(text)
