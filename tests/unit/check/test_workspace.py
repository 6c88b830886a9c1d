"""What holds for the five distributions together: pins, versions, fragments of news."""

import re
import tomllib
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
DISTRIBUTIONS = ("guest/contract", "guest/engine", "gui", "host", "images")
KINDS = ("feature", "bugfix", "doc", "removal", "misc")


def project(distribution: str) -> dict[str, object]:
    content = tomllib.loads((TOP / distribution / "pyproject.toml").read_text())
    found = content["project"]
    assert isinstance(found, dict)
    return found


def wanted(text: str) -> set[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {line.replace("'", '"') for line in lines if line}


def pinned() -> dict[str, str]:
    text = (TOP / "requirements.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", text, re.MULTILINE))


def test_requirements_in_repeats_what_the_distributions_ask_for() -> None:
    listed = wanted((TOP / ".ci" / "requirements.in").read_text())
    for distribution in DISTRIBUTIONS:
        dependencies = project(distribution)["dependencies"]
        assert isinstance(dependencies, list)
        asked = {line.replace("'", '"') for line in dependencies if not line.startswith("moorage-")}
        assert asked <= listed, distribution


def test_every_requirement_is_pinned_with_a_hash_and_without_an_address() -> None:
    names = {
        re.split(r"[^A-Za-z0-9_.-]", line)[0].lower() for line in wanted((TOP / ".ci" / "requirements.in").read_text())
    }
    assert names <= {name.lower() for name in pinned()}
    text = (TOP / "requirements.txt").read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(pinned())
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in text


def test_distributions_share_one_version() -> None:
    assert len({str(project(distribution)["version"]) for distribution in DISTRIBUTIONS}) == 1


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_fragments_of_news_are_named_and_written_as_towncrier_wants_them(distribution: str) -> None:
    fragments = sorted((TOP / distribution / "newsfragments").iterdir())
    assert fragments
    for fragment in fragments:
        assert re.fullmatch(rf"\+[a-z0-9-]+\.({'|'.join(KINDS)})\.md", fragment.name), fragment
        assert re.fullmatch(r"[A-Z`].+[.)]\n", fragment.read_text(), re.DOTALL), fragment
