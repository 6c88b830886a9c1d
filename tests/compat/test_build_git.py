"""Contexts in git repositories, fetched by the daemon: refs, folders and submodules as dockerd 26.1.5 has them, word for word."""

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.gitserver import commit, git, served
from tests.support.httpfolder import served as served_plainly
from tests.support.moored import Moored, Sandbox, wait_for

pytestmark = pytest.mark.root

FILES = {
    "Dockerfile": "FROM busybox\nCOPY . /c/\n", "file": "one\n", "dir/Dockerfile": "FROM busybox\nCOPY . /c/\n",
    "dir/x": "x\n", "to-dir": "-> dir", "out": "-> ../../../../../etc",
}  # fmt: skip


def add_submodule(repository: Path, address: str, commit_id: str) -> None:
    (repository / ".gitmodules").write_text(f'[submodule "sub"]\n\tpath = sub\n\turl = {address}\n')
    (repository / "sub").mkdir()
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{commit_id},sub")
    git(repository, "add", ".gitmodules")
    git(repository, "commit", "-q", "-m", "with a submodule")


@pytest.fixture
def repositories(moored: Moored, tmp_path: Path) -> Iterator[SimpleNamespace]:
    """main.git with two branches, a tag and a submodule; hostile.git with one that lies in the file system; both served."""
    folder = tmp_path / "repositories"
    inner = commit(folder / "sub.git", {"inner": "inner\n"})
    main = folder / "main.git"
    first = commit(main, FILES)
    add_submodule(main, "../sub.git", inner)
    git(main, "tag", "v1")
    commit(main, {"file": "two\n"}, branch="side")
    git(main, "checkout", "-q", "master")
    commit(folder / "hostile.git", {"Dockerfile": "FROM busybox\n"})
    add_submodule(folder / "hostile.git", f"file://{folder}/sub.git", inner)
    with served(folder, moored.sandbox) as server:
        yield SimpleNamespace(folder=folder, http=server.http, git=server.git, first=first)


def build(moored: Moored, address: str) -> str:
    """Build and return what is in the image, a name or a line a word."""
    reply = moored.api.call("POST", "/build", query={"remote": address, "t": "made"})
    assert b"Successfully tagged made:latest" in reply.body, reply.body
    shown = "cd /c; ls -A; cat file x sub/inner 2>/dev/null || true"
    return " ".join(moored.docker("run", "--rm", "--network", "none", "made", "sh", "-c", shown).split())


def refusal(moored: Moored, address: str) -> str:
    reply = moored.api.call("POST", "/build", query={"remote": address}, check=False)
    assert reply.status in (400, 500), reply.body
    return str(reply.json["message"])


def leftovers(moored: Moored) -> list[Path]:
    return list((moored.data_root / "tmp" / "images").iterdir())


def test_a_ref_and_a_folder_of_a_repository_are_the_context(moored: Moored, repositories: SimpleNamespace) -> None:
    whole = ".git .gitmodules Dockerfile dir file out sub to-dir"
    main = f"{repositories.http}/main.git"
    assert build(moored, main) == f"{whole} one inner"
    assert build(moored, f"{main}#side") == f"{whole} two inner"
    assert build(moored, f"{repositories.git}/main.git#side") == f"{whole} two inner"
    assert build(moored, f"{main}#v1:dir") == build(moored, f"{main}#:to-dir") == "Dockerfile x x"
    assert build(moored, f"{main}#{repositories.first}") == ".git Dockerfile dir file out to-dir one"
    with moored.client() as client:
        client.images.build(path=f"{main}#side:dir", tag="made", rm=True)
    assert leftovers(moored) == []


def test_a_repository_on_a_plain_web_server_will_do(moored: Moored, tmp_path: Path) -> None:
    commit(tmp_path / "work", {"Dockerfile": "FROM busybox\nCOPY file /c/\n", "file": "plain\n"})
    git(tmp_path, "clone", "-q", "--bare", "work", "web/main.git")
    git(tmp_path / "web" / "main.git", "update-server-info")
    with served_plainly(tmp_path / "web", moored.sandbox) as address:
        assert build(moored, f"http://{address}/main.git") == "file plain"


def test_what_is_not_there_or_leads_out_is_refused(moored: Moored, repositories: SimpleNamespace) -> None:
    main = f"{repositories.http}/main.git"
    fetching = "error fetching: fatal: "
    for address, message in (
        (f"{main}#nope", f"{fetching}couldn't find remote ref nope\n: exit status 128"),
        (f"{main}#:nope", "error setting git context: stat nope: no such file or directory"),
        (f"{main}#:file", "error setting git context, not a directory: file"),
        (f"{main}#:out", "error setting git context: stat out: no such file or directory"),
        (f"{main}#:../..", 'error setting git context, "../.." not within git root'),
        (f"{repositories.http}/none.git", f"{fetching}repository '{repositories.http}/none.git/' not found\n"),
        (f"{repositories.git}/none.git", f"{fetching}remote error: access denied or repository not exported"),
        (f"{repositories.http}/hostile.git", "fatal: transport 'file' not allowed"),
        ("http://127.0.0.1:1/x.git", "Failed to connect to 127.0.0.1 port 1"),
    ):
        assert message in refusal(moored, address)
    assert leftovers(moored) == []


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1/x.git#--upload-pack=touch", "invalid refspec: --upload-pack=touch"),
        ("git://-oProxyCommand=x/y", "no address of a git repository"),
        ("git:///etc", "no address of a git repository"),
        ("git://host/a b", "no address of a git repository"),
        ("git@host:x.git", "use an https address, or clone the repository"),
        ("ext::sh -c x% .git", "could not be recognized as URL"),
        ("file:///srv/x.git", "could not be recognized as URL"),
        ("ssh://host/x.git", "could not be recognized as URL"),
    ],
)
def test_an_address_is_never_an_option_or_another_way_in(moored: Moored, address: str, message: str) -> None:
    assert message in refusal(moored, address)


def test_hooks_and_settings_of_nobody_are_followed(
    moored: Moored, repositories: SimpleNamespace, tmp_path: Path
) -> None:
    main = repositories.folder / "main.git"
    (main / ".gitattributes").write_text("file filter=evil\n")
    (main / ".gitconfig").write_text(f'[filter "evil"]\n\tsmudge = touch {tmp_path}/ran; cat\n')
    git(main, "add", "-A")
    git(main, "commit", "-q", "-m", "evil")
    assert "one" in build(moored, f"{repositories.http}/main.git")
    assert not (tmp_path / "ran").exists()


def git_runs(moored: Moored) -> bool:
    """Whether a git is at work below the daemon's data."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                str(moored.data_root) in str((process / "cwd").readlink())
                and b"git\0" in (process / "cmdline").read_bytes()
            ):
                return True
    return False


def test_a_build_given_up_ends_its_git(moored: Moored) -> None:
    mute = "import socket, sys\ns = socket.create_server(('127.0.0.1', 0))\nprint(s.getsockname()[1], flush=True)\nsys.stdin.read()"
    server = subprocess.Popen(
        moored.sandbox.command(sys.executable, "-c", mute), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(moored.socket))
            address = f"git://127.0.0.1:{port}/x.git"
            client.sendall(f"POST /build?remote={address} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n".encode())
            wait_for("git to run", lambda: git_runs(moored))
        wait_for("git to end", lambda: not git_runs(moored))
        wait_for("its folder to go", lambda: leftovers(moored) == [])


def test_without_git_the_way_out_is_named(tmp_path: Path) -> None:
    found = shutil.which("nsenter")
    assert found is not None
    (tmp_path / "nsenter").symlink_to(found)
    with Sandbox() as sandbox:
        alone = Moored(sandbox, environment={"PATH": str(tmp_path)})
        try:
            assert "apt-get install git" in refusal(alone.start(), "https://host.invalid/x.git")
            assert leftovers(alone) == []
        finally:
            alone.stop()
