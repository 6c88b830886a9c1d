"""Whose numbers `userns-remap` gives to containers, and what is said when there are none."""

import grp
import pwd
from pathlib import Path

import pytest
from moorage_guest import remap
from moorage_guest.idmap import SAME, IdMap, IdRange, Unmapped
from moorage_guest.remap import RemapError, Remapped, prepare_data_root, remapped

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def ranges(tmp_path: Path) -> tuple[Path, Path]:
    """Files as /etc/subuid and /etc/subgid, with two ranges of users and one of groups for nobody."""
    users, groups = tmp_path / "subuid", tmp_path / "subgid"
    users.write_text("# whose\nsomebody:100000:65536\nnobody:300000:1000\n\nnobody:200000:1000\n")
    groups.write_text("nobody:500000:65536\n")
    return users, groups


def test_ranges_are_joined_in_the_order_of_their_numbers(ranges: tuple[Path, Path]) -> None:
    found = remapped("nobody:root", *ranges)
    assert found.name == "nobody:root"
    assert found.ids.uids == (IdRange(0, 200000, 1000), IdRange(1000, 300000, 1000))
    assert found.ids.root == (200000, 500000) and found.ids.folder == "200000.500000"
    assert found.ids.outside(1000, 7) == (300000, 500007)
    assert found.ids.inside(300999, 500007) == (1999, 7)
    assert found.ids.inside(1, 2) == (1, 2)  # what no container has made keeps its number
    with pytest.raises(Unmapped, match="Container ID 2000 cannot be mapped to a host ID"):
        found.ids.outside(2000, 0)
    assert found.ids.to_oci()["gidMappings"] == [{"containerID": 0, "hostID": 500000, "size": 65536}]


def test_a_number_stands_for_the_user_of_that_number(ranges: tuple[Path, Path]) -> None:
    assert remapped(f"{NOBODY.pw_uid}:0", *ranges).name == "nobody:root"
    users, groups = ranges
    users.write_text(f"nobody:1:2\n{NOBODY.pw_uid}:700000:65536\n")  # entries by number count first
    assert remapped(f"{NOBODY.pw_uid}:0", users, groups).ids.root == (700000, 500000)


def test_without_the_setting_nothing_is_remapped() -> None:
    assert remapped("") == Remapped()
    assert remapped("root") == Remapped()
    assert not SAME and SAME.outside(5, 6) == SAME.inside(5, 6) == (5, 6)
    assert SAME.root == (0, 0) and SAME.folder == ""


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("a:b:c", 'Invalid user/group specification in --userns-remap: "a:b:c"'),
        ("no-such-user", 'Error during uid lookup for "no-such-user"'),
        ("no-such-user:root", 'Error during uid lookup for "no-such-user"'),
        ("4000000001", "Uid 4000000001 has no entry in /etc/passwd"),
        ("nobody:no-such-group", 'Error during groupname lookup for "no-such-group"'),
        ("nobody:4000000001", "Gid 4000000001 has no entry in /etc/passwd"),
        (
            "daemon:root",
            'Can\'t create ID mappings: no subuid ranges found for user "daemon"; add a line such as daemon:',
        ),
    ],
)
def test_what_cannot_be_found_is_said_in_dockerds_words(setting: str, said: str, ranges: tuple[Path, Path]) -> None:
    with pytest.raises(RemapError) as caught:
        remapped(setting, *ranges)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize("line", ["nobody:1", "nobody:x:1", "nobody:1:2:3"])
def test_a_line_without_a_range_is_named(line: str, ranges: tuple[Path, Path]) -> None:
    users, groups = ranges
    users.write_text(f"{line}\n")
    with pytest.raises(RemapError, match=f"cannot parse subuid/gid information: Format not correct for line: {line}"):
        remapped("nobody:root", users, groups)
    groups.unlink()
    users.write_text("nobody:100000:65536\n")
    with pytest.raises(RemapError, match='no subgid ranges found for user "nobody"'):
        remapped("nobody:root", users, groups)


def test_default_gets_numbers_that_nobody_else_has(ranges: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remap, "DEFAULT_USER", "nobody")  # who is there on every machine
    monkeypatch.setattr(remap, "_group", lambda *_: grp.getgrnam("root"))
    users, groups = ranges
    users.write_text("somebody:100000:65536\nother:200000:10\n")
    groups.unlink()
    found = remapped("default", users, groups)
    assert users.read_text().endswith("nobody:200010:65536\n")
    assert groups.read_text() == "nobody:100000:65536\n"
    assert found.ids.root == (200010, 100000)
    assert remapped("default", users, groups) == found


@pytest.mark.root
def test_the_folder_of_the_users_lets_their_root_through(tmp_path: Path) -> None:
    ids = IdMap((IdRange(0, 231072, 65536),), (IdRange(0, 231073, 65536),))
    tmp_path.chmod(0o711)
    root = tmp_path / "data"
    denied = False
    for folder in tmp_path.parents:
        denied = denied or not folder.stat().st_mode & 0o001
    if denied:  # pytest keeps its folders to itself
        with pytest.raises(
            RemapError, match=r"restricts access to the remapped root uid/gid; please fix by allowing 'o\+x'"
        ):
            prepare_data_root(root, ids)
    else:
        assert prepare_data_root(root, ids).root == root / "231072.231073"
    status = (root / "231072.231073").stat()
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o710, 0, 231073)
    assert root.stat().st_gid == 231073
    assert prepare_data_root(tmp_path / "plain", SAME).root == tmp_path / "plain"
