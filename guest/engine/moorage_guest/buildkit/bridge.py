"""moby.buildkit.v1.frontend.LLBBridge: the calls by which a client leads one of its builds.

Every call names the build in its metadata; its Solve of `control` waits for the client's Return.
"""

import fnmatch
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from moorage_guest.buildkit import caps, grpc
from moorage_guest.buildkit import gateway_messages as gateway
from moorage_guest.buildkit.building import Building, Question, definition_of
from moorage_guest.buildkit.errors import GrpcError
from moorage_guest.buildkit.failures import as_failure
from moorage_guest.buildkit.jobs import Job, Outcome
from moorage_guest.buildkit.messages import VertexWarning, WorkerRecord
from moorage_guest.buildkit.session_messages import Stat
from moorage_guest.copyup import open_inside
from moorage_guest.errors import EngineError, InvalidParameter, NotFound
from moorage_guest.images import names
from moorage_guest.images.archive import go_mode
from moorage_guest.images.image import Image

_SERVICE = "/moby.buildkit.v1.frontend.LLBBridge/"
_JOB = "buildkit-controlapi-buildid"

#: Bytes of a file that are read into one message.
MAX_FILE = 8 << 20

T = TypeVar("T")


class Bridge:
    """Answers the calls."""

    def __init__(self, building: Building, worker: Callable[[], WorkerRecord]) -> None:
        self._building = building
        self._worker = worker

    def methods(self) -> dict[str, grpc.Method]:
        """Return the calls by path."""
        found = {
            "Ping": grpc.unary(gateway.Empty, self.ping),
            "Solve": grpc.unary(gateway.SolveRequest, self.solve),
            "Return": grpc.unary(gateway.ReturnRequest, self.give_back),
            "Inputs": grpc.unary(gateway.Empty, self.inputs),
            "Evaluate": grpc.unary(gateway.EvaluateRequest, self.evaluate),
            "ReadFile": grpc.unary(gateway.ReadFileRequest, self.read_file),
            "ReadDir": grpc.unary(gateway.ReadDirRequest, self.read_dir),
            "StatFile": grpc.unary(gateway.StatFileRequest, self.stat_file),
            "ResolveImageConfig": grpc.unary(gateway.ResolveImageConfigRequest, self.resolve_image),
            "ResolveSourceMeta": grpc.unary(gateway.ResolveSourceMetaRequest, self.resolve_source),
            "Warn": grpc.unary(gateway.WarnRequest, self.warn),
        }
        return {_SERVICE + name: method for name, method in found.items()}

    def _job(self, call: grpc.Call) -> Job:
        return self._building.jobs.find(call.metadata.get(_JOB, ""))

    async def ping(self, request: gateway.Empty, call: grpc.Call) -> gateway.PongResponse:
        """Say what can be done: the first call of each build, which may come before its Solve."""
        await self._building.jobs.awaited(call.metadata.get(_JOB, ""))
        return gateway.PongResponse(caps.frontend_caps(), caps.build_caps(), [self._worker()])

    async def solve(self, request: gateway.SolveRequest, call: grpc.Call) -> gateway.SolveResponse:
        """Build. What is built is there until the client's job is over."""
        job = self._job(call)
        if any(policy.rules for policy in request.source_policies):
            raise InvalidParameter("source policies are not supported by this engine")
        question = Question(request.frontend, request.definition, request.attrs, request.cache_imports, request.inputs)
        try:
            outcome = await self._building.solve(job, question)
        except EngineError as error:
            raise as_failure(error) from error
        ref = gateway.Ref(outcome.id, definition_of(outcome))
        return gateway.SolveResponse(gateway.Result(ref=ref, metadata=outcome.metadata))

    async def give_back(self, request: gateway.ReturnRequest, call: grpc.Call) -> gateway.Empty:
        """Take what the client's part of the build came to."""
        job = self._job(call)
        if job.returned.done():
            raise InvalidParameter("the build has been returned already")
        if request.error is not None and request.error.code:
            job.returned.set_exception(GrpcError(request.error.code, request.error.message, request.error.details))
        else:
            job.returned.set_result(self._returned(job, request.result or gateway.Result()))
        return gateway.Empty()

    def _returned(self, job: Job, result: gateway.Result) -> Outcome:
        refs = list(result.refs.refs.values()) if result.refs is not None else []
        if len(refs) > 1:
            raise InvalidParameter("an image for several platforms needs an image store with manifest lists")
        ref = refs[0] if refs else result.ref
        ref_id = result.ref_deprecated or (ref.id if ref is not None else "")
        if not ref_id:
            return Outcome(metadata=result.metadata)
        return self._building.jobs.outcome(ref_id)

    async def inputs(self, request: gateway.Empty, call: grpc.Call) -> gateway.InputsResponse:
        """Return what the client itself gave to build on."""
        job = self._job(call)
        return gateway.InputsResponse(dict(job.request.frontend_inputs))

    async def evaluate(self, request: gateway.EvaluateRequest, call: grpc.Call) -> gateway.Empty:
        """Nothing waits to be built here."""
        self._job(call)
        if request.ref:
            self._building.jobs.outcome(request.ref)
        return gateway.Empty()

    async def warn(self, request: gateway.WarnRequest, call: grpc.Call) -> gateway.Empty:
        """Pass a warning on to who follows the build."""
        job = self._job(call)
        job.status.warn(
            VertexWarning(
                request.digest, request.level, request.short, request.detail, request.url, request.info, request.ranges
            )
        )
        return gateway.Empty()

    # -- files in results -----------------------------------------------------------------------------------------------

    async def _read(self, call: grpc.Call, ref: str, path: str, work: Callable[[int], T], *, follow: bool = True) -> T:
        """Return what ``work`` makes of a path in a result, opened with O_PATH; links lead nowhere outside of it.

        Raises NotFound, InvalidParameter.
        """
        self._job(call)
        built = self._building.jobs.outcome(ref).built
        if built is None:
            raise NotFound(f"open {path}: no such file or directory")

        def at(root: Path) -> T:
            opened = open_inside(root, path, os.O_PATH if follow else os.O_PATH | os.O_NOFOLLOW)
            try:
                return work(opened)
            finally:
                os.close(opened)

        try:
            return await self._building.site.layers.read(built.chain, at)
        except FileNotFoundError:
            raise NotFound(f"open {path}: no such file or directory") from None
        except OSError as error:
            raise InvalidParameter(f"open {path}: {error.strerror}") from None

    async def read_file(self, request: gateway.ReadFileRequest, call: grpc.Call) -> gateway.ReadFileResponse:
        """Return a file's content, or a part of it."""
        wanted = request.range or gateway.FileRange()

        def read(opened: int) -> bytes:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise InvalidParameter(f"open {request.path}: not a file")
            with open(f"/proc/self/fd/{opened}", "rb") as file:
                file.seek(max(wanted.offset, 0))
                data = file.read(min(wanted.length or MAX_FILE + 1, MAX_FILE + 1))
            if len(data) > MAX_FILE:
                raise InvalidParameter(f"{request.path} is larger than {MAX_FILE} bytes: ask for parts of it")
            return data

        return gateway.ReadFileResponse(await self._read(call, request.ref, request.path, read))

    async def read_dir(self, request: gateway.ReadDirRequest, call: grpc.Call) -> gateway.ReadDirResponse:
        """Return what is in a folder."""

        def read(opened: int) -> list[Stat]:
            found = []
            for name in sorted(each.name for each in Path(f"/proc/self/fd/{opened}").iterdir()):
                if request.include and not fnmatch.fnmatchcase(name, request.include):
                    continue
                entry = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=opened)
                try:
                    found.append(_stat(entry, name))
                finally:
                    os.close(entry)
            return found

        return gateway.ReadDirResponse(await self._read(call, request.ref, request.path, read))

    async def stat_file(self, request: gateway.StatFileRequest, call: grpc.Call) -> gateway.StatFileResponse:
        """Return what is known of a path."""
        name = PurePosixPath(request.path).name
        found = await self._read(call, request.ref, request.path, lambda opened: _stat(opened, name), follow=False)
        return gateway.StatFileResponse(found)

    # -- images -----------------------------------------------------------------------------------------------------------

    async def resolve_image(
        self, request: gateway.ResolveImageConfigRequest, call: grpc.Call
    ) -> gateway.ResolveImageConfigResponse:
        """Return the configuration of an image that the engine has."""
        self._job(call)
        image = self._image(request.ref)
        return gateway.ResolveImageConfigResponse(image.id, json.dumps(image.document).encode(), request.ref)

    async def resolve_source(
        self, request: gateway.ResolveSourceMetaRequest, call: grpc.Call
    ) -> gateway.ResolveSourceMetaResponse:
        """The same, asked in another way."""
        self._job(call)
        kind, _, name = (request.source.identifier if request.source is not None else "").partition("://")
        if kind != "docker-image":
            raise InvalidParameter(f"only images are resolved, not {kind or 'nothing'}")
        image = self._image(name)
        found = gateway.ResolveSourceImageResponse(image.id, json.dumps(image.document).encode())
        return gateway.ResolveSourceMetaResponse(request.source, found)

    def _image(self, name: str) -> Image:
        image = self._building.site.images.find(names.parse(name).familiar)
        if image is None:
            raise NotFound(f"{name}: not found")
        return image


def _stat(opened: int, name: str) -> Stat:
    found = os.fstat(opened)
    return Stat(
        path=name,
        mode=go_mode(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=found.st_size if stat.S_ISREG(found.st_mode) else 0,
        mod_time=found.st_mtime_ns,
        linkname=os.readlink("", dir_fd=opened) if stat.S_ISLNK(found.st_mode) else "",
    )
