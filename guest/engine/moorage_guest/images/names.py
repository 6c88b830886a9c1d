"""Names of images: parsing, the short form people see, and matching. Knows no store."""

import re
from dataclasses import dataclass, replace

from moorage_guest.errors import InvalidParameter

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
_ANY_DIGEST = re.compile(r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}")
_HEX = re.compile(r"[a-f0-9]{1,64}")


@dataclass(frozen=True)
class Reference:
    """A name with its registry written out: ``docker.io/library/busybox``, and a tag or a digest or neither."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        return self.path.removeprefix("library/") if self.path.count("/") == 1 else self.path

    @property
    def familiar(self) -> str:
        """The whole name as people write it."""
        text = self.familiar_name
        if self.tag:
            text += f":{self.tag}"
        if self.digest:
            text += f"@{self.digest}"
        return text

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def with_default_tag(self) -> "Reference":
        """Add ``latest`` when there is neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)


def parse(text: str) -> Reference:
    """Parse what a person wrote. Raises InvalidParameter in dockerd's words."""
    invalid = InvalidParameter("invalid reference format")
    if re.fullmatch(r"[a-f0-9]{64}", text):
        raise InvalidParameter(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    rest, at, digest = text.partition("@")
    if at and not _ANY_DIGEST.fullmatch(digest):
        raise invalid
    if at and not DIGEST.fullmatch(digest):
        raise InvalidParameter("unsupported digest algorithm: only sha256 is known")
    first, slash, remainder = rest.partition("/")
    if slash and (any(c in first for c in ".:") or first == "localhost" or first.lower() != first):
        domain, rest = first, remainder
    else:
        domain = DEFAULT_DOMAIN
    if domain == "index.docker.io":
        domain = DEFAULT_DOMAIN
    head, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        head, tag, colon = rest, "", ""
    if colon and not _TAG.fullmatch(tag):
        raise invalid
    if not _DOMAIN.fullmatch(domain) or not head:
        raise invalid
    if domain == DEFAULT_DOMAIN and "/" not in head:
        head = f"library/{head}"
    if not _PATH.fullmatch(head):
        if _PATH.fullmatch(head.lower()):
            raise InvalidParameter(
                f"invalid reference format: repository name ({head.removeprefix('library/')}) must be lowercase"
            )
        raise invalid
    if len(f"{domain}/{head}") > 255:
        raise InvalidParameter("repository name must not be more than 255 characters")
    return Reference(domain, head, tag, digest)


def is_domain(text: str) -> bool:
    """Whether text is the address of a registry: a host and perhaps a port."""
    return _DOMAIN.fullmatch(text) is not None


def is_image_id(text: str) -> bool:
    """Whether text can be an image's id or the beginning of one."""
    return _HEX.fullmatch(text.removeprefix("sha256:")) is not None
