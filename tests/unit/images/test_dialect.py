"""Dockerfiles as BuildKit reads them: here-documents, flags, directives, and the lines that errors name."""

import pytest
from moorage_guest.images.build import dialect
from moorage_guest.images.build.dialect import Statement
from moorage_guest.images.build.mounts import Mount, read_mount
from moorage_guest.images.build.seams import BuildError


def statements(text: str) -> list[Statement]:
    return list(dialect.parse(text.encode(), "Dockerfile").statements)


def test_here_documents_are_taken_from_the_lines_below() -> None:
    copy, after = statements('COPY <<one <<-"two" /t/\na $b\none\n\tc\n\ttwo\nRUN x\n')
    assert [(each.name, each.data, each.text, each.expand, each.chomp) for each in copy.documents] == [
        ("one", "a $b\n", "a $b\n", True, False), ("two", "\tc\n", "c\n", False, True),
    ]  # fmt: skip
    assert (copy.line, copy.last, after.line, after.text) == (1, 5, 6, "x")


@pytest.mark.parametrize("text", ["RUN cat <<<word", 'RUN ["<<E"]', "RUN echo a <<", "ENV A=<<E", "CMD <<E"])
def test_what_only_looks_like_a_here_document_is_none(text: str) -> None:
    (found,) = statements(text)
    assert not found.documents


def test_flags_may_be_quoted_and_some_given_more_than_once() -> None:
    (found,) = statements('RUN --mount=type=cache,target=/a --mount="type=bind,target=/b c" --network=none x')
    assert found.values("mount") == ["type=cache,target=/a", "type=bind,target=/b c"]
    assert (found.flags["network"], found.text) == ("none", "x")


def test_directives_stand_before_everything_else() -> None:
    parsed = dialect.parse(b"#!/x\n# syntax=docker/dockerfile:1\n# check=skip=all\n# escape=`\nRUN a `\n b\\\n", "D")
    assert (parsed.syntax, parsed.check) == ("docker/dockerfile:1", "skip=all")
    assert parsed.statements[0].text == "a  b\\"
    assert not dialect.parse(b"# a comment\n# syntax=foo\nRUN x", "D").syntax


@pytest.mark.parametrize(
    ("text", "said", "lines"),
    [
        ("FROM a\n\nRUNX b", "dockerfile parse error on line 3: unknown instruction: RUNX (did you mean RUN?)", (3, 3)),
        ("FROM a\nRUN <<E\nb", "unterminated heredoc", (2, 3)),
        ("FROM a\nCOPY --form=b c \\\n  d", "dockerfile parse error on line 2: unknown flag: form (did you mean from?)", (2, 3)),
        ("FROM a\nVOLUME", "dockerfile parse error on line 2: VOLUME requires at least one argument", (2, 2)),
        ("FROM a\nONBUILD ONBUILD RUN x", "dockerfile parse error on line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed", (2, 2)),
        ("# only words", "file with no instructions", (1, 1)),
        ("# escape=x\nRUN y", "invalid ESCAPE 'x'. Must be ` or \\", (1, 1)),
    ],
)  # fmt: skip
def test_errors_name_the_lines(text: str, said: str, lines: tuple[int, int]) -> None:
    with pytest.raises(BuildError) as caught:
        statements(text)
    assert str(caught.value) == said
    assert caught.value.source is not None
    assert caught.value.source.ranges == (lines,)


@pytest.mark.parametrize(
    "name", ["docker/dockerfile", "docker.io/docker/dockerfile:1.7-labs", "docker/dockerfile-upstream:master"]
)
def test_the_frontend_that_is_built_in_answers_to_its_names(name: str) -> None:
    dialect.check_syntax(name)


def test_a_frontend_from_a_registry_is_refused() -> None:
    with pytest.raises(BuildError, match="frontend image evil/frontend:1"):
        dialect.check_syntax("evil/frontend:1")


def mount(text: str) -> Mount:
    (found,) = statements(f"RUN --mount={text} x")
    return read_mount(found, found.values("mount")[0], lambda word: word.replace("$A", "a"), "/app")


def test_mounts_are_read() -> None:
    assert mount("target=b") == Mount("bind", "/app/b")
    assert mount("type=cache,dst=/c/$A,sharing=locked,mode=0700,uid=3") == Mount(
        "cache", "/c/a", writable=True, id="/c/a", sharing="locked", mode=0o700, uid=3
    )
    assert mount("type=tmpfs,target=/t,size=1m").size == 1 << 20
    assert mount("type=secret,id=s") == Mount("secret", "/run/secrets/s", id="s")
    assert mount("type=secret,id=s,env=S") == Mount("secret", "", id="s", variable="S")
    assert mount("type=ssh,required") == Mount("ssh", "", id="default", required=True)
    assert mount("type=bind,from=other,src=/x,target=/y,rw").writable


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("type=foo", 'unsupported mount type "foo"'),
        ("type=cache,target=/a,foo=b", "unexpected key 'foo' for mount type \"cache\""),
        ("type=cache,target=/a,sharing=x", 'unsupported sharing value "x"'),
        ("type=tmpfs,target=/a,mode=1", 'mode not allowed for "tmpfs" type mounts'),
        ("type=cache,target=/a,uid=x", "invalid value x for uid"),
        ("target=/", 'invalid mount target "/"'),
        ("target", "invalid field 'target' must be a key=value pair"),
    ],
)
def test_mounts_that_mean_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(BuildError) as caught:
        mount(text)
    assert str(caught.value) == said
