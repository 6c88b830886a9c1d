from pathlib import Path

import pytest
from moorage_host.errors import HostError
from moorage_host.paths import docker_config, user_paths


def test_xdg_variables_decide_on_linux() -> None:
    paths = user_paths({"HOME": "/home/u", "XDG_STATE_HOME": "/s", "XDG_CONFIG_HOME": "relative"}, "linux")
    assert (paths.state, paths.config, paths.data) == (
        Path("/s/moorage"),
        Path("/home/u/.config/moorage"),
        Path("/home/u/.local/share/moorage"),
    )


def test_macos_uses_the_library() -> None:
    assert user_paths({"HOME": "/Users/u"}, "darwin").state == Path("/Users/u/Library/Application Support/Moorage")


def test_too_long_socket_path_is_said_with_the_way_out() -> None:
    with pytest.raises(HostError, match="too long for a socket") as caught:
        _ = user_paths({"HOME": "/h", "XDG_STATE_HOME": "/" + "x" * 120}, "linux").docker_socket
    assert "XDG_STATE_HOME" in caught.value.hint


def test_docker_config_is_respected() -> None:
    assert docker_config({"DOCKER_CONFIG": "/d", "HOME": "/h"}) == Path("/d")
    assert docker_config({"HOME": "/h"}) == Path("/h/.docker")
