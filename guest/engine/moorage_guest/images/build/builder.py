"""The classic builder: a Dockerfile and a context become an image, step by step, with dockerd's output."""

import asyncio
import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace

from moorage_guest.errors import InvalidParameter
from moorage_guest.images import names, platforms, pulling
from moorage_guest.images.build.changes import check
from moorage_guest.images.build.dockerfile import DockerfileError, Instruction, Stage, parse, parse_line, stages
from moorage_guest.images.build.ignore import Ignore
from moorage_guest.images.build.options import BuildOptions
from moorage_guest.images.build.runner import StepRunner
from moorage_guest.images.build.sources import SourceTree
from moorage_guest.images.build.steps import PREDEFINED, StageState, Workshop, inherited, triggers
from moorage_guest.images.build.words import Expansion
from moorage_guest.images.image import Image
from moorage_guest.images.layers import Layers
from moorage_guest.images.store import Images
from moorage_guest.images.streams import Progress, finished

log = logging.getLogger(__name__)

#: A Dockerfile larger than this is none.
MAX_DOCKERFILE = 8 << 20


def texts_of(context: SourceTree, name: str) -> tuple[str, str]:
    """Return the texts of the Dockerfile and of .dockerignore. Raises InvalidParameter."""
    text = context.read(name, MAX_DOCKERFILE)
    if text is None and name == "Dockerfile":
        text = context.read("dockerfile", MAX_DOCKERFILE)
    if text is None:
        raise InvalidParameter(f"Cannot locate specified Dockerfile: {name}")
    if not text.strip():
        raise InvalidParameter(f"the Dockerfile ({name}) cannot be empty")
    return text, context.read(".dockerignore", MAX_DOCKERFILE) or ""


class Builder:
    """One build. `run` once."""

    def __init__(
        self, images: Images, layers: Layers, runner: StepRunner, options: BuildOptions, progress: Progress
    ) -> None:
        self._images = images
        self._layers = layers
        self._runner = runner
        self._options = options
        self._progress = progress

    def _emit(self, text: str) -> None:
        if not self._options.quiet:
            self._progress({"stream": text})

    async def run(self, context: SourceTree) -> Image:
        """Build and tag. Raises InvalidParameter, StepFailed; what was built until then stays as cache."""
        text, ignored = await finished(asyncio.to_thread(texts_of, context, self._options.dockerfile))
        warnings: list[str] = []
        instructions = parse(text, warnings.append)
        if warnings:
            warnings.append("[WARNING]: Empty continuation lines will become errors in a future release.\n")
        for warning in warnings:
            self._emit(f"\x1b[91m{warning}\x1b[0m")
        for instruction in instructions:
            check(instruction)
        first, plan = stages(instructions)
        wanted = self._target(plan)
        last = plan[wanted]
        labels = [
            replace(parse_line(f"LABEL {_quote(key)}={_quote(value)}", last.base.line), original=f"LABEL {key}={value}")
            for key, value in sorted(self._options.labels.items())
        ]
        plan[wanted] = replace(last, steps=(*last.steps, *labels))
        if left_out := Ignore(ignored.splitlines()):
            context.ignore = left_out
        owner = f"build:{uuid.uuid4().hex}"
        shop = Workshop(self._images, self._layers, self._runner, self._options, context, self._emit, owner)
        shop.find_image = self._find_image
        try:
            image = await self._stages(shop, first, plan[: wanted + 1])
            await self._tag(image, shop)
        finally:
            await finished(asyncio.to_thread(self._images.release_work, owner))
        return image

    def _target(self, plan: list[Stage]) -> int:
        target = self._options.target
        if not target:
            return len(plan) - 1
        for number, stage in enumerate(plan):
            if stage.name and stage.name == target.lower():
                return number
        raise InvalidParameter(f'target stage "{target}" could not be found')

    async def _stages(self, shop: Workshop, first: list[Instruction], plan: list[Stage]) -> Image:
        arguments = self._global_args(shop, first)
        total = len(first) + sum(1 + len(stage.steps) for stage in plan)
        number = 0
        for instruction in first:
            number += 1
            self._emit(f"Step {number}/{total} : {instruction.original}\n")
        image: Image | None = None
        for index, stage in enumerate(plan):
            number += 1
            shop.current = index
            if stage.name and stage.name in shop.stages:
                raise InvalidParameter(f"{stage.name} stage name already used")
            self._emit(f"Step {number}/{total} : {stage.base.original}\n")
            base = await self._base(shop, stage, arguments)
            state = StageState(shop, base, inherited(base), arguments)
            extra = triggers(base, stage.base.line)
            if not extra:
                self._emit(f" ---> {base.short_id}\n" if base is not None else " ---> \n")
            else:
                self._emit(f"# Executing {len(extra)} build trigger{'s' if len(extra) > 1 else ''}\n")
            for instruction in extra:
                await state.run(instruction)
            for instruction in stage.steps:
                number += 1
                self._emit(f"Step {number}/{total} : {instruction.original}\n")
                await state.run(instruction)
            image = state.image
            if image is not None:
                self._progress({"aux": {"ID": image.id}})
            shop.stages[str(index)] = image
            if stage.name:
                shop.stages[stage.name] = image
        if image is None:
            raise InvalidParameter("No image was generated. Is your Dockerfile empty?")
        unused = sorted(set(self._options.build_args) - shop.used_args - PREDEFINED)
        if unused:
            self._emit(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n")
        return image

    def _global_args(self, shop: Workshop, first: list[Instruction]) -> Mapping[str, str]:
        """Return the arguments before the first FROM, with the platform's."""
        here = platforms.this_platform()
        target = self._options.platform or here
        found = {
            "TARGETPLATFORM": str(target), "TARGETOS": target.os, "TARGETARCH": target.architecture,
            "TARGETVARIANT": target.variant, "BUILDPLATFORM": str(here), "BUILDOS": here.os,
            "BUILDARCH": here.architecture, "BUILDVARIANT": here.variant,
        }  # fmt: skip
        for instruction in first:
            name, equals, raw = instruction.text.partition("=")
            shop.used_args.add(name)
            given = self._options.build_args.get(name)
            if given is not None:
                found[name] = given
            elif equals:
                found[name] = Expansion(found, instruction.escape).one(raw)
        return found

    async def _base(self, shop: Workshop, stage: Stage, arguments: Mapping[str, str]) -> Image | None:
        expansion = Expansion(arguments, stage.base.escape)
        name = expansion.one(stage.image)
        if not name:
            raise DockerfileError(f"base name ({stage.image}) should not be blank")
        if name.lower() in shop.stages and not name.isdigit():
            return shop.stages[name.lower()]
        if name == "scratch":
            return None
        platform = self._options.platform
        if "platform" in stage.base.flags:
            platform = platforms.parse(expansion.one(stage.base.flags["platform"]))
        found = await self._find_image(name, self._options.pull, platform)
        self._images.hold_for(shop.owner, found)
        return found

    async def _find_image(self, name: str, pull: bool, platform: platforms.Platform | None = None) -> Image:
        image = self._images.find(name)
        if image is not None and not pull and (platform is None or platform.matches(_platform_of(image))):
            return image
        reference = names.parse(name)
        found = await pulling.pull(
            self._images, reference, self._pull_progress, credentials=self._options.login(reference), platform=platform
        )
        return found[0]

    def _pull_progress(self, message: dict[str, object]) -> None:
        if not self._options.quiet:
            self._progress(message)

    async def _tag(self, image: Image, shop: Workshop) -> None:
        if self._options.quiet:
            self._progress({"stream": f"{image.id}\n"})
        self._emit(f"Successfully built {image.short_id}\n")
        for tag in self._options.tags:
            await asyncio.to_thread(self._images.tag, image, tag)
            self._emit(f"Successfully tagged {tag.familiar}\n")


def _platform_of(image: Image) -> Mapping[str, str]:
    return {"os": image.os, "architecture": image.architecture, "variant": str(image.document.get("variant") or "")}


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'
