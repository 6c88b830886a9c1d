"""Which requests have their bytes kept, in case a client sends input behind a head that asks for an upgrade."""

from moorage_guest.api.protocol import asks_for_an_upgrade


def test_only_a_head_can_ask_for_an_upgrade() -> None:
    assert asks_for_an_upgrade(b"POST /exec/a/start HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\ninput")
    assert asks_for_an_upgrade(b"Connection: upgrade\r\nUpg")  # a head may come in pieces
    assert not asks_for_an_upgrade(b"POST /images/load HTTP/1.1\r\n\r\napt-get upgrade; Upgrade: tcp")
    assert not asks_for_an_upgrade(b"GET /info HTTP/1.1\r\n")
