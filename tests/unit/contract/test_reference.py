"""The reference page is made from the declarations and drift is found."""

from pathlib import Path

from moorage_contract import reference
from moorage_contract.daemon_config import SETTINGS

PAGE = Path(__file__).parents[3] / "docs" / "daemon-json.md"


def test_page_in_the_tree_is_up_to_date() -> None:
    assert reference.main(["--check", str(PAGE)]) == 0


def test_every_key_is_on_the_page() -> None:
    text = reference.page()
    assert all(f"`{key}`" in text for key in SETTINGS)


def test_drift_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert reference.main(["--check", str(page)]) == 1
    assert reference.main([str(page)]) == 0
    assert reference.main(["--check", str(page)]) == 0
