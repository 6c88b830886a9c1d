"""Log options are taken or refused as dockerd does."""

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.logs.drivers import LogInfo, attributes, buffer_size, check_options, rotation
from moorage_guest.logs.files import Rotation


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("fluent", {}, "logger: no log driver named 'fluent' is registered"),
        ("json-file", {"foo": "1"}, "unknown log opt 'foo' for json-file log driver"),
        ("local", {"foo": "1"}, "unknown log opt 'foo' for log driver local"),
        ("json-file", {"mode": "fast"}, "logger: logging mode not supported: fast"),
        (
            "json-file", {"max-buffer-size": "1m"},
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        (
            "json-file", {"mode": "non-blocking", "max-buffer-size": "x"},
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        ("json-file", {"max-size": "lots"}, "invalid size: 'lots'"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"compress": "true"}, "compress cannot be true when max-file is less than 2 or max-size is not set"),
    ],
)  # fmt: skip
def test_refused(driver: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        check_options(driver, options)
    assert str(raised.value) == text


def test_taken() -> None:
    check_options("none", {"anything": "goes"})
    check_options("json-file", {"max-size": "10m", "max-file": "3", "compress": "true", "labels": "a,b"})
    check_options("local", {"max-size": "1k", "mode": "non-blocking", "max-buffer-size": "4m"})
    assert rotation("json-file", {"max-size": "10m", "max-file": "3"}) == Rotation(10_000_000, 3, False)
    assert rotation("local", {}) == Rotation(20 << 20, 5, True)
    assert buffer_size({"mode": "non-blocking", "max-buffer-size": "4m"}) == 4 << 20
    assert buffer_size({}) is None


def test_labels_env_and_tag_become_attributes() -> None:
    info = LogInfo("0123456789abcdef", "/web", "sha256:aa", "busybox", labels={"a": "1", "b": "2"}, env=["X=y", "Z=w"])
    options = {"labels": "a", "env-regex": "^X", "tag": "{{.Name}}/{{.ID}}/{{ .ImageName }}"}
    assert attributes(options, info) == {"a": "1", "X": "y", "tag": "web/0123456789ab/busybox"}
