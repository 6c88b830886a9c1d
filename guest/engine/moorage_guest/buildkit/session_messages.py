"""Messages of the services that a client offers on its session: files, credentials, secrets, SSH agents, uploads. And of health."""

from moorage_guest.buildkit.protobuf import (
    Message,
    embedded,
    integer,
    mapping,
    octets,
    octets_mapping,
    string,
    strings,
)

#: Kinds of `Packet`.
STAT, REQUEST, DATA, FIN, ERROR = range(5)


class BytesMessage(Message):
    """A piece of some stream, in several services."""

    data: bytes = octets(1)


class Stat(Message):
    """fsutil.types.Stat. ``mode`` is Go's os.FileMode, see `gomode`; ``mod_time`` is in nanoseconds."""

    path: str = string(1)
    mode: int = integer(2)
    uid: int = integer(3)
    gid: int = integer(4)
    size: int = integer(5)
    mod_time: int = integer(6)
    linkname: str = string(7)
    devmajor: int = integer(8)
    devminor: int = integer(9)
    xattrs: dict[str, bytes] = octets_mapping(10)


class Packet(Message):
    """fsutil.types.Packet, of FileSync and FileSend."""

    type: int = integer(1)
    stat: Stat | None = embedded(2, Stat)
    id: int = integer(3)
    data: bytes = octets(4)


class CredentialsRequest(Message):
    """Of Auth.Credentials."""

    host: str = string(1)


class CredentialsResponse(Message):
    """Of Auth.Credentials. Without a user name the secret is an identity token."""

    username: str = string(1)
    secret: str = string(2)


class FetchTokenRequest(Message):
    """Of Auth.FetchToken."""

    client_id: str = string(1)
    host: str = string(2)
    realm: str = string(3)
    service: str = string(4)
    scopes: list[str] = strings(5)


class FetchTokenResponse(Message):
    """Of Auth.FetchToken. Times in seconds."""

    token: str = string(1)
    expires_in: int = integer(2)
    issued_at: int = integer(3)


class GetSecretRequest(Message):
    """Of Secrets.GetSecret."""

    id: str = string(1)
    annotations: dict[str, str] = mapping(2)


class GetSecretResponse(Message):
    """Of Secrets.GetSecret."""

    data: bytes = octets(1)


class CheckAgentRequest(Message):
    """Of SSH.CheckAgent."""

    id: str = string(1)


class CheckAgentResponse(Message):
    """Of SSH.CheckAgent."""


class HealthCheckRequest(Message):
    """grpc.health.v1.HealthCheckRequest."""

    service: str = string(1)


class HealthCheckResponse(Message):
    """grpc.health.v1.HealthCheckResponse; 1 is serving."""

    status: int = integer(1)
