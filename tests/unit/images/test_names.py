"""Names of images and platforms are read as Docker reads them."""

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.images import names, platforms


@pytest.mark.parametrize(
    ("text", "whole", "familiar"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
        ("a/b:c", "docker.io/a/b:c", "a/b:c"),
        ("docker.io/library/x", "docker.io/library/x:latest", "x:latest"),
        ("index.docker.io/x", "docker.io/library/x:latest", "x:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
        ("reg.example/a/b/c", "reg.example/a/b/c:latest", "reg.example/a/b/c:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("a_b-c.d__e", "docker.io/library/a_b-c.d__e:latest", "a_b-c.d__e:latest"),
        (f"x@sha256:{'a' * 64}", f"docker.io/library/x@sha256:{'a' * 64}", f"x@sha256:{'a' * 64}"),
        (f"x:t@sha256:{'a' * 64}", f"docker.io/library/x:t@sha256:{'a' * 64}", f"x:t@sha256:{'a' * 64}"),
    ],
)
def test_a_name_is_completed(text: str, whole: str, familiar: str) -> None:
    found = names.parse(text).with_default_tag()
    assert (str(found), found.familiar) == (whole, familiar)
    assert names.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "x:", "/x", "x/", "a//b", "Upper", "x:t:t", "x@sha256:abc", "x@md5:" + "a" * 32, "-x", "x..y", "a" * 64,
        "x y", "x:-t", "../x", "x\n", "a/" * 130 + "b", "x:" + "t" * 129,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        names.parse(text)


def test_platforms_are_read_and_matched() -> None:
    arm = platforms.parse("linux/arm64")
    assert arm == platforms.parse("aarch64") == platforms.from_json('{"os": "linux", "architecture": "arm64"}')
    assert arm.matches({"os": "linux", "architecture": "arm64", "variant": "v8"})
    assert not arm.matches({"os": "linux", "architecture": "amd64"})
    assert platforms.parse("linux/arm/v7").matches({"os": "linux", "architecture": "arm", "variant": "v6"})
    assert not platforms.parse("linux/arm/v6").matches({"os": "linux", "architecture": "arm", "variant": "v7"})
    for text in ("", "a/b/c/d", "linux/", "li nux/x"):
        with pytest.raises(InvalidParameter):
            platforms.parse(text)


def test_an_index_gives_the_image_for_this_machine() -> None:
    mine = platforms.this_platform()
    own = {"digest": "own", "platform": {"os": "linux", "architecture": mine.architecture}}
    other = {"digest": "other", "platform": {"os": "linux", "architecture": "s390x"}}
    note = {"digest": "note", "platform": {"os": "unknown", "architecture": "unknown"}, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}}  # fmt: skip
    assert platforms.choose([other, note, own], None) == own
    assert platforms.choose([other, note], None) is None
    assert platforms.choose([other, own], platforms.parse("linux/s390x")) == other
    assert platforms.choose([note, {"digest": "bare"}], None) == {"digest": "bare"}
