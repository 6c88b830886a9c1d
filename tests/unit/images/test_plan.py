"""What a build is going to do, and what of it the image's history and configuration say."""

from typing import Any

import pytest
from moorage_guest.images import platforms
from moorage_guest.images.build import dialect
from moorage_guest.images.build.planned import Copy, Origin, Planned, Run
from moorage_guest.images.build.planning import Planner, check
from moorage_guest.images.build.request import Request
from moorage_guest.images.build.seams import BuildError, Built

BASE = Built({"config": {"Env": ["PATH=/bin"], "OnBuild": ["RUN trigger"]}}, (), (), platforms.this_platform(), "owner")


def plan(text: str, attributes: dict[str, str] | None = None, *, entitlements: tuple[str, ...] = ()) -> list[Planned]:
    request = Request.of(attributes or {}, entitlements=entitlements)
    planner = Planner(request, *dialect.stages(dialect.parse(text.encode(), "Dockerfile").statements))
    origin = Origin(image=BASE, name="base")
    bases = {index: origin for index in planner.needed if planner.named(planner.bases[index], index) is None}
    others = {name: origin for index in planner.needed for _, name in planner.outside(index)}
    return planner.plan(bases, others)


def rows(text: str, attributes: dict[str, str] | None = None) -> list[str]:
    return [row.created_by for row in plan(text, attributes)[-1].rows if "trigger" not in row.created_by]


def runs(stage: Planned) -> list[Run]:
    return [step for step in stage.steps if isinstance(step, Run)]


def test_only_the_stages_that_the_target_needs_are_planned() -> None:
    text = "FROM a AS one\nFROM a AS two\nFROM a AS three\nFROM one AS four\nCOPY --from=three x /\nFROM a AS five"
    assert [each.stage.name for each in plan(text, {"target": "four"})] == ["one", "three", "four"]
    assert [each.stage.name for each in plan(text)] == ["five"]
    mounted = "FROM a AS one\nFROM a\nRUN --mount=type=bind,from=one,target=/x true"
    assert [each.stage.index for each in plan(mounted)] == [0, 1]


def test_circles_and_targets_that_are_not_there_are_refused() -> None:
    with pytest.raises(BuildError, match="circular dependency detected on stage: one"):
        plan("FROM a AS one\nRUN --mount=type=bind,from=two,target=/x y\nFROM one AS two\nFROM one")
    with pytest.raises(
        BuildError, match='cannot copy from stage "two", it needs to be defined before current stage "one"'
    ):
        plan("FROM a AS one\nCOPY --from=two x /\nFROM one AS two\nFROM two")
    with pytest.raises(BuildError, match='target stage "nope" could not be found'):
        plan("FROM a", {"target": "nope"})


def test_the_history_says_what_was_asked_for() -> None:
    text = (
        'ARG G=g\nFROM a\nARG A=1\nARG B\nARG G\nENV C=$A D="x y"\nRUN echo $C\nWORKDIR w\nCOPY --chown=1 --link a.txt $C /t/\n'
        'EXPOSE 80 53/udp\nVOLUME /v\nLABEL a=b\nUSER u\nCMD ["x"]\nENTRYPOINT y\nSTOPSIGNAL 9\nSHELL ["/s", "-c"]\nRUN z\n'
    )
    assert rows(text, {"build-arg:B": "bee", "build-arg:A": "2"}) == [
        "ARG A=1", "ARG B", "ARG G", "ENV C=2 D=x y", "RUN |3 A=2 B=bee G=g /bin/sh -c echo $C # buildkit", "WORKDIR /w",
        "COPY --chown=1 a.txt 2 /t/ # buildkit", "EXPOSE map[53/udp:{} 80/tcp:{}]", "VOLUME [/v]", "LABEL a=b", "USER u",
        'CMD ["x"]', 'ENTRYPOINT ["/bin/sh" "-c" "y"]', "STOPSIGNAL 9", "SHELL [/s -c]",
        "RUN |3 A=2 B=bee G=g /s -c z # buildkit",
    ]  # fmt: skip


def test_a_trigger_of_the_base_comes_first_and_does_not_stay() -> None:
    (stage,) = plan("FROM a\nRUN own")
    assert [each.command[-1] for each in runs(stage)] == ["trigger", "own"]
    assert "OnBuild" not in stage.config
    assert [each.number for each in stage.steps] == [2, 3]
    assert stage.total == 3


def test_platform_arguments_are_there_only_when_declared() -> None:
    stages = plan("FROM a\nRUN one\nARG TARGETPLATFORM\nRUN two")
    _, one, two = runs(stages[-1])
    wanted = f"TARGETPLATFORM={platforms.this_platform()}"
    assert wanted not in one.environment
    assert wanted in two.environment


def test_proxies_reach_commands_and_no_history() -> None:
    (stage,) = plan("FROM a\nRUN x", {"build-arg:HTTP_PROXY": "p"})
    assert runs(stage)[-1].proxies == ("HTTP_PROXY=p",)
    assert stage.rows[-1].created_by == "RUN /bin/sh -c x # buildkit"


@pytest.mark.parametrize(
    ("instruction", "command", "script"),
    [
        ("RUN <<E\necho $X\nE", ["/bin/sh", "-c", "echo $X\n"], None),
        ("RUN <<E cat\ndata\nE", ["/bin/sh", "-c", "<<E cat\ndata\nE"], None),
        ("RUN <<E\n#!/usr/bin/env x\nE", ["/bin/sh", "-c", "/dev/pipes/E"], ("E", "#!/usr/bin/env x\n")),
        ('RUN ["a", "b"]', ["a", "b"], None),
    ],
)
def test_here_documents_are_run(instruction: str, command: list[str], script: Any) -> None:
    step = runs(plan(f"FROM a\n{instruction}")[-1])[-1]
    assert (list(step.command), step.script) == (command, script)


def test_here_documents_are_expanded_unless_quoted() -> None:
    (stage,) = plan("FROM a\nARG A=1\nCOPY <<a <<'b' /x/\n$A \"$A\" \\$A\na\n$A\nb")
    copy = stage.steps[-1]
    assert isinstance(copy, Copy)
    assert copy.documents == (("a", '1 "1" $A\n'), ("b", "$A\n"))
    assert stage.rows[-1].created_by == "COPY <<a <<b /x/ # buildkit"


def test_the_hosts_network_takes_leave() -> None:
    text = "FROM a\nRUN --network=host x"
    with pytest.raises(BuildError, match=r"network\.host is not allowed"):
        plan(text)
    assert runs(plan(text, entitlements=("network.host",))[-1])[-1].network == "host"
    assert runs(plan("FROM a\nRUN x", {"force-network-mode": "none"})[-1])[-1].network == "none"


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("ARG x\nFROM $x", "base name ($x) should not be blank", 2),
        ("FROM a\nENV A=${B:?oops}", 'failed to process "${B:?oops}": B: oops', 2),
        ("FROM a\nRUN --security=insecure x", "security.insecure is not allowed", 2),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, said: str, line: int) -> None:
    with pytest.raises(BuildError) as caught:
        plan(text)
    assert str(caught.value) == said
    assert caught.value.source is not None
    assert caught.value.source.ranges[0][0] == line


def test_attributes_become_options_of_containers() -> None:
    given = {"shm-size": "64m", "ulimit": "nofile=1:2,core=0", "add-hosts": "a=1.2.3.4,b=::1", "cgroup-parent": "/x"}
    assert Request.of(given).host == {
        "ShmSize": 64 << 20, "CgroupParent": "/x", "ExtraHosts": ["a:1.2.3.4", "b:::1"],
        "Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}, {"Name": "core", "Soft": 0, "Hard": 0}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"platform": "linux/amd64,linux/arm64"}, "Multi-platform build is not supported"),
        ({"force-network-mode": "mynet"}, "network mode 'mynet' not supported"),
        ({"shm-size": "many"}, "invalid size for shm-size"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(Exception, match=said):
        Request.of(given)


def test_what_came_last_of_arguments_and_environment_counts() -> None:
    first, second = runs(plan("FROM a\nARG A=1\nENV A=2\nRUN x\nARG A=3\nRUN y")[-1])[1:]
    assert "A=2" in first.environment
    assert "A=3" in second.environment


def test_steps_are_shown_with_what_their_variables_are() -> None:
    text = 'FROM a\nENV A=1\nRUN echo "$A $B" \'$A\'\nCOPY ["$A b", "/"]\nWORKDIR $A'
    assert [step.shown for step in plan(text)[-1].steps[1:]] == [
        "RUN echo \"1 $B\" '$A'", "COPY [1 b, /]", "WORKDIR 1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ENV A=1 B", 'Syntax error - can\'t find = in "B". Must be of the form: name=value'),
        ("RUN --network=foo x", 'dockerfile parse error on line 2: invalid network mode "foo"'),
        (
            "RUN --mount=type=bind,from=$A,target=/x x",
            "dockerfile parse error on line 2: 'from' doesn't support variable expansion, define alias stage instead",
        ),
    ],
)
def test_what_is_wrong_whatever_is_built_is_found_first(line: str, said: str) -> None:
    statement = dialect.parse(f"FROM a\n{line}".encode(), "Dockerfile").statements[1]
    with pytest.raises(BuildError) as caught:
        check(statement)
    assert str(caught.value) == said


def test_a_copy_may_name_its_source_by_an_argument_of_all_stages() -> None:
    stages = plan("ARG S=one\nFROM a AS one\nFROM a\nARG S=two\nCOPY --from=$S x /")
    assert [each.stage.name for each in stages] == ["one", ""]
