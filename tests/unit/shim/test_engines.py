"""Built engines: what is accepted, and the rule of YY.MM kept in step with the contract's."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moorage_contract.version import upgrade_allowed
from moorage_guest.agent.engines import BUILT_IN, EngineError, Engines, built_in_version, refusal

_VERSION_FILE = 'ENGINE_VERSION = "26.11.4"\n'


def archive(path: Path, members: dict[str, str]) -> str:
    """Write a tar and return its sha256."""
    with tarfile.open(path, "w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


GOOD = {"moorage_guest/daemon.py": "", "moorage_contract/version.py": _VERSION_FILE}


def test_a_built_engine_is_staged_by_its_version_and_the_link_puts_it_in_force(tmp_path: Path) -> None:
    engines = Engines(tmp_path)
    assert engines.current == BUILT_IN
    assert engines.stage(tmp_path / "e.tar", archive(tmp_path / "e.tar", GOOD)) == "26.11.4"
    assert engines.current == BUILT_IN
    engines.switch("26.11.4", previous=BUILT_IN)
    assert (engines.current, engines.previous, engines.names()) == ("26.11.4", BUILT_IN, ["26.11.4"])
    assert engines.environment()["PYTHONPATH"].startswith(str(tmp_path / "engine" / "26.11.4"))
    engines.switch(BUILT_IN, previous="26.11.4")
    assert (engines.current, engines.previous) == (BUILT_IN, "26.11.4")
    assert engines.version_of(BUILT_IN) == built_in_version()


def test_zip_files_are_engines_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "e.zip", "w") as file:
        for name, text in GOOD.items():
            file.writestr(name, text)
    digest = hashlib.sha256((tmp_path / "e.zip").read_bytes()).hexdigest()
    assert Engines(tmp_path).stage(tmp_path / "e.zip", digest) == "26.11.4"


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"../outside": ""}, "unexpected"),
        ({"/etc/passwd": ""}, "unexpected"),
        ({"moorage_guest/../../outside": ""}, "unexpected"),
        ({**GOOD, "sitecustomize.py": ""}, "unexpected"),
        ({"moorage_guest/daemon.py": ""}, "version.py is missing"),
        ({"moorage_contract/version.py": _VERSION_FILE}, r"daemon\.py is missing"),
        ({**GOOD, "moorage_contract/version.py": "x = 1"}, "has no version"),
    ],
)
def test_what_is_no_engine_is_refused_and_leaves_nothing(tmp_path: Path, members: dict[str, str], why: str) -> None:
    engines = Engines(tmp_path / "data")
    with pytest.raises(EngineError, match=why):
        engines.stage(tmp_path / "e.tar", archive(tmp_path / "e.tar", members))
    assert list((tmp_path / "data" / "engine").iterdir()) == []
    assert not (tmp_path / "outside").exists()


def test_a_link_inside_an_engine_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "e.tar", "w") as tar:
        member = tarfile.TarInfo("moorage_guest")
        member.type = tarfile.SYMTYPE
        member.linkname = "/etc"
        tar.addfile(member)
    digest = hashlib.sha256((tmp_path / "e.tar").read_bytes()).hexdigest()
    with pytest.raises(EngineError, match="files and folders only"):
        Engines(tmp_path).stage(tmp_path / "e.tar", digest)


_VERSIONS = st.tuples(st.integers(24, 28), st.integers(1, 12), st.integers(0, 20)).map(lambda v: "{}.{}.{}".format(*v))


@given(before=_VERSIONS, after=_VERSIONS, running=st.lists(st.sampled_from(["web", "db"]), max_size=2, unique=True))
def test_the_agents_rule_is_the_contracts_rule(before: str, after: str, running: list[str]) -> None:
    verdict = upgrade_allowed(before, after, running)
    assert (refusal(before, after, running) == "") == verdict.allowed
    if not verdict.allowed:
        assert refusal(before, after, running) == verdict.reason
