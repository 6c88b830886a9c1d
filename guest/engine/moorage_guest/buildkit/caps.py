"""What this engine says that it can do, in the words that clients of BuildKit look for."""

from moorage_contract.version import ENGINE_VERSION

from moorage_guest.buildkit.messages import APICap, BuildkitVersion, Platform, WorkerRecord
from moorage_guest.images import platforms

PACKAGE = "github.com/moby/buildkit"

#: The version whose clients' questions are answered, and by whom.
VERSION = f"v0.13.2-moorage-{ENGINE_VERSION}"

#: Of the bridge, by which a client leads a build.
_FRONTEND = """
frontend.caps frontend.inputs gateway.evaluate gateway.solve.evaluate gateway.solve.metadata gateway.warnings importcaches
proto.refarray readdir readfile reference.output resolveimage resolveimage.resolvemode return returnmap solve.base
source.metaresolver statfile
"""

#: Of what a Dockerfile may ask for; clients ask for none of them themselves, since definitions are not built.
_BUILD = """
constraints exec.cgroup exec.meta.base exec.meta.cgroup.parent exec.meta.network exec.meta.proxyenv exec.meta.security
exec.meta.setsdefaultpath exec.meta.ulimit exec.mount.bind exec.mount.bind.readwrite-nooutput exec.mount.cache
exec.mount.cache.sharing exec.mount.secret exec.mount.selector exec.mount.ssh exec.mount.tmpfs exec.mount.tmpfs.size
exec.secretenv exporter.multiple file.base file.copy.includeexcludepatterns meta.description meta.ignorecache platform
source.git source.git.keepgitdir source.http source.http.checksum source.image source.image.resolvemode source.local
source.local.excludepatterns source.local.followpaths source.local.includepatterns source.local.sessionid
source.local.sharedkeyhint source.local.unique
"""

#: Asked for by name, and not there.
_MISSING = {
    "diffop": "builds are described by Dockerfiles",
    "mergeop": "builds are described by Dockerfiles",
    "exporter.image.attestations": "attestations need an image store with manifest lists",
    "exporter.image.annotations": "annotations need an image store with manifest lists",
}


def frontend_caps() -> list[APICap]:
    """Return what the bridge can do."""
    return [APICap(id=name, enabled=True) for name in _FRONTEND.split()]


def build_caps() -> list[APICap]:
    """Return what builds can do, and why they cannot what they cannot."""
    found = [APICap(id=name, enabled=True) for name in _BUILD.split()]
    return found + [APICap(id=name, disabled_reason_message=why) for name, why in _MISSING.items()]


def version() -> BuildkitVersion:
    """Return who answers."""
    return BuildkitVersion(package=PACKAGE, version=VERSION)


def worker(worker_id: str, host_gateway: str) -> WorkerRecord:
    """Return the one worker there is: the engine. ``host_gateway`` is what clients write for ``host-gateway``."""
    runnable = platforms.runnable_platforms()
    return WorkerRecord(
        id=worker_id,
        labels={"org.mobyproject.buildkit.worker.moby.host-gateway-ip": host_gateway} if host_gateway else {},
        platforms=[Platform(architecture=each.architecture, os=each.os, variant=each.variant) for each in runnable],
        buildkit_version=version(),
    )
