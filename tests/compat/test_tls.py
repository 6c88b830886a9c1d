"""The API over TCP: only with certificates of both sides, and then for everything that clients do over the socket."""

import base64
import datetime
import ipaddress
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.images import busybox_archive
from tests.support.moored import DEADLINE, Moored, Sandbox, running_moored, wait_for
from tests.support.plugins import AuthorizationPlugin

PORT = 23760

_DOCKER_PY = """
import sys, docker
folder, port = sys.argv[1:]
tls = docker.tls.TLSConfig(client_cert=(f"{folder}/cert.pem", f"{folder}/key.pem"), ca_cert=f"{folder}/ca.pem", verify=True)
client = docker.DockerClient(base_url=f"tcp://127.0.0.1:{port}", tls=tls, timeout=60)
box = client.containers.run("busybox", "cat", detach=True, stdin_open=True, network_mode="none")
done = box.exec_run(["sh", "-c", "echo out; echo err >&2; exit 3"], demux=True)
box.remove(force=True)
print(client.ping(), client.containers.run("busybox", ["echo", "hello"], remove=True), done.exit_code, done.output)
"""


@dataclass(frozen=True)
class Authority:
    """Signs certificates; `issue` writes ca.pem, cert.pem and key.pem, as docker looks for them, into a folder."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, subject, key).add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        return cls(subject, key, builder.sign(key, hashes.SHA256()))

    def issue(self, folder: Path, *, server: bool) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        builder = _builder(subject, self.name, key).add_extension(x509.ExtendedKeyUsage([usage]), False)
        if server:
            local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([local]), False)
        folder.mkdir()
        for name, signed in (("ca.pem", self.certificate), ("cert.pem", builder.sign(self.key, hashes.SHA256()))):
            (folder / name).write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        (folder / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return folder


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
    )  # fmt: skip


def listening(folder: Path) -> list[str]:
    """Return the daemon's arguments for a folder with its certificate."""
    files = ("--tlscacert", "ca.pem"), ("--tlscert", "cert.pem"), ("--tlskey", "key.pem")
    return ["--host", f"tcp://127.0.0.1:{PORT}", "--tlsverify", *(f"{name}={folder / file}" for name, file in files)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Certificates of the daemon, of a client, and of a client of somebody else's authority who knows ours."""
    base = tmp_path_factory.mktemp("tls")
    ours, other = Authority.make("ours"), Authority.make("another")
    made = {"server": ours.issue(base / "server", server=True), "client": ours.issue(base / "client", server=False)}
    made["stranger"] = other.issue(base / "stranger", server=False)
    (made["stranger"] / "ca.pem").write_bytes((made["client"] / "ca.pem").read_bytes())
    return made


@pytest.fixture(scope="module")
def secured(folders: dict[str, Path]) -> Iterator[Moored]:
    with running_moored(*listening(folders["server"])) as moored:
        moored.docker("load", "-i", str(busybox_archive()))
        yield moored


def docker(
    moored: Moored, folder: Path, *argv: str, input: str | None = None, tls: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run the docker CLI inside the daemon's network, over TCP, with a folder's certificate."""
    files = [
        f"--tls{name}={folder / file}"
        for name, file in (("cacert", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem"))
    ]
    options = ["--tlsverify", *files] if tls else []
    environment = {name: value for name, value in moored.docker_environment().items() if name != "DOCKER_HOST"}
    return subprocess.run(
        moored.sandbox.command("docker", "--host", f"tcp://127.0.0.1:{PORT}", *options, *argv), env=environment,
        capture_output=True, text=True, input=input, timeout=DEADLINE, check=False,
        stdin=subprocess.DEVNULL if input is None else None,
    )  # fmt: skip


def test_the_cli_works_over_tls(secured: Moored, folders: dict[str, Path]) -> None:
    client = folders["client"]
    for argv, given, code, output in (
        (
            ["run", "--rm", "-i", "--network=none", "busybox", "sh", "-c", "cat; echo err >&2; exit 4"],
            "in\n",
            4,
            "in\n",
        ),
        (["run", "-d", "--name=kept", "--network=none", "busybox", "sh", "-c", "seq 50000; sleep 1000"], None, 0, None),
        (["exec", "-i", "kept", "sh", "-c", "wc -c"], "x" * 300_000, 0, "300000\n"),
        (["logs", "kept"], None, 0, "".join(f"{n}\n" for n in range(1, 50_001))),
        (["rm", "-f", "kept"], None, 0, "kept\n"),
    ):
        done = docker(secured, client, *argv, input=given)
        assert done.returncode == code, (argv, done.stderr)
        assert output is None or done.stdout == output, argv


def test_docker_py_works_over_tls(secured: Moored, folders: dict[str, Path]) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_CA_BUNDLE")}
    argv = (sys.executable, "-c", _DOCKER_PY, str(folders["client"]), str(PORT))
    done = secured.sandbox.run(*argv, env=environment)
    assert done.stdout == "True b'hello\\n' 3 (b'out\\n', b'err\\n')\n"


def test_nobody_without_a_certificate_of_the_authority_gets_an_answer(
    secured: Moored, folders: dict[str, Path]
) -> None:
    for folder, tls in ((folders["stranger"], True), (folders["client"], False)):
        done = docker(secured, folder, "version", "--format", "{{.Server.Version}}", tls=tls)
        assert done.returncode == 1 and done.stdout.strip() == "", done.stdout
    assert "Traceback" not in secured.log()
    assert docker(secured, folders["client"], "info", "--format", "{{.OSType}}").stdout == "linux\n"


@pytest.mark.parametrize("verify", [False, True], ids=["plain", "without-files"])
def test_tcp_without_client_certificates_is_refused_at_start(verify: bool) -> None:
    with Sandbox() as sandbox:
        moored = Moored(sandbox, ["--host", f"tcp://127.0.0.1:{PORT}", *(["--tlsverify"] if verify else [])])
        assert moored.spawn().wait(DEADLINE) == 1
        text = "cannot load TLS files" if verify else "does not listen on TCP without client certificates"
        assert text in moored.log() and "Traceback" not in moored.log()


def test_authorization_plugins_are_told_whose_certificate_it_is(secured: Moored, folders: dict[str, Path]) -> None:
    with AuthorizationPlugin(secured.exec_root / "plugins/guard.sock") as plugin:

        def is_asked() -> bool:
            plugin.calls.clear()
            return secured.answers() and bool(plugin.called("AuthZReq"))

        secured.config_file.write_text('{"authorization-plugins": ["guard"]}')
        secured.signal(signal.SIGHUP)
        wait_for("the reload", is_asked)
        assert docker(secured, folders["client"], "ps").returncode == 0
        asked = plugin.called("AuthZReq")[-1]
        assert (asked["User"], asked["UserAuthNMethod"]) == ("client", "TLS")
        shown = base64.b64decode(asked["RequestPeerCertificates"][0])
        assert shown.split() == (folders["client"] / "cert.pem").read_bytes().split()
        secured.config_file.write_text('{"authorization-plugins": []}')
        secured.signal(signal.SIGHUP)
        wait_for("the second reload", lambda: not is_asked())
