"""libvirt's Python binding, or the reason why it cannot be loaded, said when a connection is wanted rather than at import."""

from __future__ import annotations

missing = ""

try:
    import libvirt
    import libvirt_qemu
except ImportError as error:  # the binding is installed with us, libvirt's own library is not
    libvirt = None
    libvirt_qemu = None
    missing = str(error)

__all__ = ["libvirt", "libvirt_qemu", "missing"]
