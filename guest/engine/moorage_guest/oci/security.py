"""HostConfig.SecurityOpt, parsed."""

from collections.abc import Sequence
from dataclasses import dataclass

from moorage_guest.errors import InvalidParameter

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})


@dataclass(frozen=True)
class SecurityOptions:
    """What --security-opt asks for. ``seccomp`` is "", "unconfined", "builtin" or a profile's JSON."""

    no_new_privileges: bool = False
    seccomp: str = ""
    apparmor: str = ""
    writable_cgroups: bool = False


def parse_security_options(options: Sequence[str], *, no_new_privileges: bool = False) -> SecurityOptions:
    """Parse; the argument is the daemon's default. Raises InvalidParameter with dockerd's texts.

    AppArmor is not in this kernel: asking for a profile is refused, "unconfined" and "" are what is there anyway.
    """
    values = {"no-new-privileges": no_new_privileges, "writable-cgroups": False}
    seccomp = apparmor = ""
    for option in options:
        if option == "no-new-privileges":
            values["no-new-privileges"] = True
            continue
        if option == "disable":
            continue
        separator = "=" if "=" in option else ":"
        key, found, value = option.partition(separator)
        if not found:
            raise InvalidParameter(f'invalid --security-opt 1: "{option}"')
        if key == "label":
            continue  # SELinux is not in this kernel; dockerd without it ignores labels
        if key == "apparmor":
            if value not in ("", "unconfined", "docker-default"):
                raise InvalidParameter(
                    f'AppArmor is not available on this machine: profile "{value}" cannot be applied '
                    "(remove the option or use apparmor=unconfined)"
                )
            apparmor = value
        elif key == "seccomp":
            seccomp = value
        elif key in values:
            if value not in _TRUE | _FALSE:
                raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
            values[key] = value in _TRUE
        else:
            raise InvalidParameter(f'invalid --security-opt 2: "{option}"')
    return SecurityOptions(values["no-new-privileges"], seccomp, apparmor, values["writable-cgroups"])
