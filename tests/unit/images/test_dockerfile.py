"""The Dockerfile language: what lines mean, how words expand, and what is refused."""

import re

import pytest
from moorage_guest.errors import InvalidParameter
from moorage_guest.images.build.changes import apply_changes, check
from moorage_guest.images.build.dockerfile import DockerfileError, parse, stages
from moorage_guest.images.build.ignore import Ignore
from moorage_guest.images.build.words import Expansion

VARIABLES = {"a": "apple", "empty": "", "path": "/usr/local/lib/lib.so", "words": "one  two"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("$a", "apple"), ("${a}x", "applex"), ("$ax", ""), ("'$a'", "$a"), ('"$a b"', "apple b"), (r"\$a", "$a"),
        ("${none:-x}", "x"), ("${empty:-x}", "x"), ("${empty-x}", ""), ("${none-$a}", "apple"), ("${a:+y}", "y"),
        ("${none:+y}", ""), ("${empty+y}", "y"), ("${path##*/}", "lib.so"), ("${path#*/}", "usr/local/lib/lib.so"),
        ("${path%/*}", "/usr/local/lib"), ("${path%%/*}", ""), ("${path/lib/LIB}", "/usr/local/LIB/lib.so"),
        ("${path//lib/L}", "/usr/local/L/L.so"), (r'"a\"b"', 'a"b'), (r"a\ b", "a b"), ("$", "$"), ("a$", "a$"),
        ("${none:-${a}}", "apple"), ('"', None), ("'x", None), ("${a", None), ("${none:?gone}", None), ("${a:@x}", None),
    ],
)  # fmt: skip
def test_words_expand_as_the_reference_says(word: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(InvalidParameter):
            Expansion(VARIABLES).one(word)
    else:
        assert Expansion(VARIABLES).one(word) == expected


def test_lines_are_joined_and_comments_left_out() -> None:
    text = '# syntax=x\n\n# comment\nFROM a AS B\nRUN one \\\n  # inside\n\n  two && \\\n  three\n  cmd ["x", "y"]\n'
    first, second, third = parse(text)
    assert (first.name, first.text, first.line) == ("FROM", "a AS B", 4)
    assert second.text.split() == ["one", "two", "&&", "three"]
    assert third.words == ("x", "y")
    assert stages([first, second, third])[1][0].name == "b"


def test_the_escape_character_can_be_chosen() -> None:
    _first, second = parse("# escape=`\nFROM a\nRUN x `\n y\\\n")
    assert second.text.split() == ["x", "y\\"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "failed to parse Dockerfile: file with no instructions"),
        ("# escape=`\n# escape=`\nFROM a\n", "only one escape parser directive can be used"),
        ("FROM a\nUSER\n", "USER requires exactly one argument"),
        ("# only\n", "file with no instructions"),
        ("FROM a\nFOO b\n", "dockerfile parse error on line 2: unknown instruction: FOO"),
        ("FROM a\nADD --checksum=sha256:1 http://a b\n", "requires BuildKit"),
        ("FROM a\nADD --link=perhaps a b\n", "expecting boolean value for flag link, not: perhaps"),
        ("FROM a\nCOPY --parents a b\n", "unknown flag: parents"),
        ("FROM a\nRUNN a\n", r"unknown instruction: RUNN \(did you mean RUN\?\)"),
        ("FROM a\nCOPY --what=1 a b\n", "unknown flag: what"),
        ("FROM a\nRUN <<EOF\necho\nEOF\n", "here-documents need BuildKit"),
        ("RUN x\n", "no build stage in current context"),
        ("FROM a b\n", "FROM requires either one or three arguments"),
        ("FROM a AS 1x\n", "invalid name for build stage"),
        ("FROM\n", "FROM requires either one or three arguments"),
        ("# escape=x\nFROM a\n", "failed to parse Dockerfile: invalid escape token 'x'"),
    ],
)
def test_what_is_no_dockerfile_is_refused_in_dockers_words(text: str, message: str) -> None:
    with pytest.raises(DockerfileError, match=message):
        stages(parse(text))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ENV A", "failed to parse Dockerfile: ENV must have two arguments"),
        ("ENV A=1 B", 'failed to parse Dockerfile: Syntax error - can\'t find = in "B"'),
        ("ENV =1", "line 2: ENV names can not be blank"),
        ("LABEL a=b c", 'can\'t find = in "c"'),
        ("SHELL /bin/sh -c", "SHELL requires the arguments to be in JSON form"),
        ("SHELL []", "SHELL requires at least one argument"),
        ('VOLUME [""]', "VOLUME specified can not be an empty string"),
        ("HEALTHCHECK FOO x", 'Unknown type "FOO" in HEALTHCHECK'),
        ("HEALTHCHECK --interval=x CMD a", 'time: invalid duration "x"'),
        ("HEALTHCHECK --retries=-1 CMD a", "--retries cannot be negative (-1)"),
        ("ONBUILD FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("COPY a", "COPY requires at least two arguments, but only one was provided. Destination"),
    ],
)
def test_faults_are_found_before_anything_is_built(line: str, message: str) -> None:
    _from, instruction = parse(f"FROM a\n{line}\n")
    with pytest.raises(DockerfileError, match=re.escape(message)):
        check(instruction)


def test_an_expansion_that_fails_names_the_word() -> None:
    with pytest.raises(InvalidParameter, match=re.escape('failed to process "${B?oops}": B: oops')):
        Expansion({}).one("${B?oops}")


def test_changes_give_a_new_configuration() -> None:
    config = {"Env": ["A=1", "PATH=/bin"], "Cmd": ["old"]}
    changes = [
        'ENV A=2 B="x y" C=$A', "ENV OLD some words", "EXPOSE 80 53/udp 8000-8001", "LABEL k=v 'q r'=s", "USER me:us",
        "WORKDIR /a", "WORKDIR b/../c", "VOLUME /v /w", 'VOLUME ["/x y"]', "STOPSIGNAL SIGINT", "ONBUILD RUN x",
        "HEALTHCHECK --interval=5s --retries=3 CMD curl -f x", 'ENTRYPOINT ["/e"]', "CMD echo hi",
    ]  # fmt: skip
    made = apply_changes(config, changes)
    assert made["Env"] == ["A=2", "PATH=/bin", "B=x y", "C=1", "OLD=some words"]
    assert set(made["ExposedPorts"]) == {"80/tcp", "53/udp", "8000/tcp", "8001/tcp"}
    assert made["Labels"] == {"k": "v", "q r": "s"}
    assert made["WorkingDir"] == "/a/c"
    assert set(made["Volumes"]) == {"/v", "/w", "/x y"}
    assert made["Healthcheck"] == {"Test": ["CMD-SHELL", "curl -f x"], "Interval": 5_000_000_000, "Retries": 3}
    assert (made["Entrypoint"], made["Cmd"]) == (["/e"], ["/bin/sh", "-c", "echo hi"])
    assert config == {"Env": ["A=1", "PATH=/bin"], "Cmd": ["old"]}


def test_an_entrypoint_takes_the_bases_command_away_but_not_its_own() -> None:
    assert "Cmd" not in apply_changes({"Cmd": ["base"]}, ['ENTRYPOINT ["e"]'])
    assert apply_changes({}, ['CMD ["c"]', 'ENTRYPOINT ["e"]'])["Cmd"] == ["c"]


@pytest.mark.parametrize(
    "change",
    [
        "RUN x", "COPY a b", "FROM x", "EXPOSE http", "EXPOSE 70000", "ONBUILD ONBUILD RUN x", "ONBUILD FROM x", "ENV a",
        "HEALTHCHECK --interval=1 CMD x", "HEALTHCHECK WHAT x", "STOPSIGNAL !", "STOPSIGNAL FOO", "EXPOSE 80/foo", "WHAT x",
    ],
)  # fmt: skip
def test_changes_that_mean_nothing_are_refused(change: str) -> None:
    with pytest.raises(InvalidParameter):
        apply_changes({}, [change])


def test_dockerignore_knows_exceptions_and_any_depth() -> None:
    ignore = Ignore(["# c", "*.log", "!keep.log", "**/tmp", "docs", "!docs/readme.md", "a/*/c", "/top", "x?z"])
    left_out = ["one.log", "tmp", "d/e/tmp", "d/tmp/file", "docs/x", "a/b/c", "top", "xyz"]
    kept = ["keep.log", "d/one.log", "docs/readme.md", "a/b/d", "sub/top", "xz"]
    assert [path for path in left_out if not ignore(path)] == []
    assert [path for path in kept if ignore(path)] == []


def test_an_escaped_dollar_opens_no_braces() -> None:
    assert Expansion({}).one("${no:-\\${abc}:}") == "${abc:}"
    assert Expansion({"in": "x"}).one("${no:-${in}y}") == "xy"


def test_what_an_image_triggers_is_only_looked_at_when_it_is_triggered() -> None:
    made = apply_changes({}, ["ONBUILD /usr/local/bin/python-build --dir /app/src"])
    assert made["OnBuild"] == ["/usr/local/bin/python-build --dir /app/src"]


def test_a_byte_order_mark_is_no_part_of_a_pattern() -> None:
    ignored = Ignore(["\ufeffnode_modules", "!kept"])
    assert ignored("node_modules") and not ignored("kept")
