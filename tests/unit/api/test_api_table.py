"""The page of operations is what the routes say."""

from tests.support import api_table


def test_every_operation_is_answered() -> None:
    assert [operation for operation, module in api_table.table().items() if not module] == []
    assert len(api_table.operations()) == 107


def test_the_page_is_up_to_date() -> None:
    assert api_table.PAGE.read_text() == api_table.page(), "run python -m tests.support.api_table"
