from moorage_host.ports import Wanted, wanted


def test_published_ports_are_listed_once_each_in_order() -> None:
    containers = [
        {
            "Names": ["/web"],
            "Ports": [
                {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
                {"PrivatePort": 9, "Type": "tcp"},
            ],
        },
        {"Names": ["/dns"], "Ports": [{"IP": "127.0.0.1", "PrivatePort": 53, "PublicPort": 5300, "Type": "udp"}]},
    ]
    assert wanted(containers) == [
        Wanted("127.0.0.1", 5300, "udp", "dns", 53),
        Wanted("0.0.0.0", 8080, "tcp", "web", 80),
        Wanted("::", 8080, "tcp", "web", 80),
    ]


def test_containers_without_ports_or_names_are_no_fault() -> None:
    assert wanted([{"Id": "abc", "Ports": None}, {"Names": [], "Id": "abc", "Ports": []}]) == []
