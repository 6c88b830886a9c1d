"""Says what has to be done for a target, before anything is: which stages, and from what they take their files.

What the steps of a stage are is for `stageplan`. Nothing here touches the disk or waits.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import platforms
from moorage_guest.images.build import changes
from moorage_guest.images.build.dialect import Stage, Statement
from moorage_guest.images.build.planned import Origin, Planned
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.seams import BuildError, Source
from moorage_guest.images.build.stageplan import StagePlan, expanded
from moorage_guest.images.build.words import Expansion, split_quoted


class Planner:
    """Plans one build. Raises BuildError with the line that is wrong."""

    def __init__(self, request: Request, first: Sequence[Statement], stages: Sequence[Stage]) -> None:
        self.request = request
        self.stages = stages
        self._here = platforms.this_platform()
        self._platform = request.platform or self._here
        self.has_several = len(stages) > 1 or any(each.values("mount") for stage in stages for each in stage.steps)
        """Whether steps are shown with their stage's name. To BuildKit what is mounted is a stage, too."""
        self.platform_args = self._platform_args()
        self.global_args = self._global_args(first)
        self.bases = [self._base_name(stage) for stage in stages]
        self.target = self._target()
        self.needed = self._needed()

    # -- before anything is looked up ---------------------------------------------------------------------------------

    def _platform_args(self) -> dict[str, str]:
        target, here = self._platform, self._here
        return {
            "TARGETPLATFORM": str(target), "TARGETOS": target.os, "TARGETARCH": target.architecture,
            "TARGETVARIANT": target.variant, "BUILDPLATFORM": str(here), "BUILDOS": here.os,
            "BUILDARCH": here.architecture, "BUILDVARIANT": here.variant, "TARGETSTAGE": self.request.target or "default",
        }  # fmt: skip

    def _global_args(self, first: Iterable[Statement]) -> dict[str, str]:
        found = {**self.platform_args}
        for name in self.platform_args.keys() & self.request.build_args.keys():
            found[name] = self.request.build_args[name]
        for statement in first:
            for word in split_quoted(statement.text, statement.escape):
                name, equals, raw = word.partition("=")
                if name in self.request.build_args:
                    found[name] = self.request.build_args[name]
                elif equals:
                    found[name] = expanded(statement, Expansion(found, statement.escape).one, raw)
        return found

    def _base_name(self, stage: Stage) -> str:
        name = expanded(stage.base, Expansion(self.global_args, stage.base.escape).one, stage.image)
        if not name:
            raise stage.base.error(f"base name ({stage.image}) should not be blank")
        return name

    def base_platform(self, stage: Stage) -> platforms.Platform | None:
        """Return the platform that FROM names, or the one that the build is for; None when nobody says."""
        text = stage.base.flags.get("platform", "")
        if not text:
            return self.request.platform
        wanted = expanded(stage.base, Expansion(self.global_args, stage.base.escape).one, text)
        try:
            return platforms.parse(wanted)
        except InvalidParameter as error:
            raise stage.base.error(f"failed to parse platform {wanted}: {error}") from None

    def named(self, name: str, before: int) -> int | None:
        """Return the last stage of a name before another one."""
        found = [stage.index for stage in self.stages[:before] if stage.name and stage.name == name.lower()]
        return found[-1] if found else None

    def shown(self, index: int) -> str:
        """Return what a stage is called."""
        return self.stages[index].name or f"stage-{index}"

    def _target(self) -> int:
        wanted = self.request.target
        if not wanted:
            return len(self.stages) - 1
        found = self.named(wanted, len(self.stages))
        if found is None and wanted.isdigit() and int(wanted) < len(self.stages):
            found = int(wanted)
        if found is None:
            raise BuildError(f'target stage "{wanted}" could not be found')
        return found

    def from_stage(self, name: str, current: int) -> int | None:
        """Return the stage that --from means."""
        found = self.named(name, len(self.stages))
        if found is None and name.isdigit():
            if int(name) >= len(self.stages):
                raise BuildError(f"invalid stage index {name}")
            found = int(name)
        return found

    def from_name(self, statement: Statement) -> str:
        """Return what COPY --from names; only arguments from before the first FROM may be in it. Raises BuildError."""
        return expanded(statement, Expansion(self.global_args, statement.escape).one, statement.flags["from"])

    def outside(self, index: int) -> list[tuple[Source | None, str]]:
        """Return the names of images and contexts that a stage takes files from, its base aside, and where they stand."""
        return [(each.source, name) for each, name in self._froms(index) if self.from_stage(name, index) is None]

    def _froms(self, index: int) -> list[tuple[Statement, str]]:
        found = []
        for statement in self.stages[index].steps:
            if statement.name == "COPY" and "from" in statement.flags:
                found.append((statement, self.from_name(statement)))
            for value in statement.values("mount"):
                fields = [each.partition("=") for each in value.split(",")]
                found.extend((statement, text) for key, _, text in fields if key.lower() == "from" and text)
        return found

    def _depends(self, index: int) -> list[tuple[Statement, int]]:
        found = []
        if self.request.named_context(self.stages[index].name) is not None and self.stages[index].name:
            return []
        base = self.named(self.bases[index], index)
        if base is not None:
            found.append((self.stages[index].base, base))
        for statement, name in self._froms(index):
            stage = self.from_stage(name, index)
            if stage is not None and (stage <= index or statement.name != "COPY"):  # `plan` refuses that one
                found.append((statement, stage))
        return found

    def _needed(self) -> list[int]:
        """Return the stages that the target is made of, each after what it needs."""
        done: list[int] = []
        under_way: list[int] = []

        def visit(index: int, why: Statement | None) -> None:
            if index in under_way:
                text = f"circular dependency detected on stage: {self.shown(index)}"
                raise why.error(text) if why is not None else BuildError(text)
            if index in done:
                return
            under_way.append(index)
            for statement, other in self._depends(index):
                visit(other, statement)
            under_way.pop()
            done.append(index)

        visit(self.target, None)
        return done

    # -- once everything outside is found -----------------------------------------------------------------------------

    def plan(self, bases: Mapping[int, Origin | None], find: Mapping[str, Origin]) -> list[Planned]:
        """Return the needed stages, each after what it needs. ``bases`` are those that are no stage."""
        done: dict[int, Planned] = {}
        for index in self.needed:
            stage = self.stages[index]
            from_stage = self.named(self.bases[index], index)
            if index in bases:
                base = bases[index]
            else:
                assert from_stage is not None
                base = Origin(stage=from_stage, name=self.bases[index])
            before = done[base.stage] if base is not None and base.stage is not None else None
            done[index] = StagePlan(self, stage, base, before, find).planned()
        return list(done.values())


def check(statement: Statement) -> None:
    """Find what is wrong with an instruction whatever is built. Raises BuildError."""
    try:
        changes.check(statement)
    except BuildError:
        raise
    except InvalidParameter as error:
        raise statement.error(str(error).removeprefix("failed to parse Dockerfile: ")) from None
    mode = statement.flags.get("network", "default") if statement.name == "RUN" else "default"
    if mode not in ("default", "host", "none") and "$" not in mode:
        raise statement.fault(f'invalid network mode "{mode}"')
    for value in statement.values("mount"):
        if re.search(r"(^|,)\s*from=[^,]*\$", value):
            raise statement.fault("'from' doesn't support variable expansion, define alias stage instead")
