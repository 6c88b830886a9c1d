import json
import re
import time
from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moorage_guest.api.types import EndpointSettings
from moorage_guest.errors import EngineError, InvalidParameter
from moorage_guest.net.records import EndpointRecord, NetworkRecord, PortBindingRecord, SandboxRecord, Subnet
from moorage_guest.net.requests import IpamConfig, NetworkCreate, check_create, check_endpoint, check_ipam
from moorage_guest.net.selection import Selection, created_before, duration_seconds, parse_time


def test_all_faults_of_a_request_are_told_together() -> None:
    configs = [
        IpamConfig.model_validate(
            {
                "Subnet": "10.0.0.5/24",
                "IPRange": "10.0.0.0/16",
                "Gateway": "nope",
                "AuxiliaryAddresses": {"r": "2001:db8::1"},
            }
        ),
        IpamConfig.model_validate({"Subnet": "10.0.0.0/25"}),
    ]
    with pytest.raises(InvalidParameter) as caught:
        check_ipam(configs, ipv6=True)
    assert str(caught.value).splitlines() == [
        "invalid network config:",
        "invalid subnet 10.0.0.5/24: it should be 10.0.0.0/24",
        "invalid ip-range 10.0.0.0/16: CIDR block is bigger than its parent subnet 10.0.0.0/24",
        "invalid gateway nope: invalid address",
        "invalid auxiliary address r: parent subnet is an IPv4 block",
        "invalid subnet 10.0.0.0/25: it overlaps another subnet of this network",
    ]


@settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {
            "Name": st.text(max_size=20),
            "Driver": st.sampled_from(["", "bridge", "macvlan", "ipvlan", "x"]),
            "IPAM": st.one_of(
                st.none(),
                st.fixed_dictionaries(
                    {"Config": st.lists(st.dictionaries(st.sampled_from(["Subnet", "IPRange", "Gateway"]), st.text("0123456789./:abcdef", max_size=20)), max_size=2)}
                ),
            ),
            "Options": st.dictionaries(
                st.sampled_from(["com.docker.network.driver.mtu", "com.docker.network.bridge.name", "macvlan_mode"]), st.text(max_size=20)
            ),
        }
    )
)  # fmt: skip
def test_any_request_is_taken_or_refused_for_a_reason(body: dict[str, object]) -> None:
    try:
        check_create(NetworkCreate.model_validate(body))
    except EngineError as error:
        assert 400 <= error.status < 500 and str(error)


def test_endpoint_faults_are_told_together() -> None:
    network = NetworkRecord("id", "net", "bridge", "", (Subnet("10.0.0.0/24"),))
    settings = EndpointSettings.model_validate(
        {"IPAMConfig": {"IPv4Address": "x", "IPv6Address": "::", "LinkLocalIPs": ["y"]}, "MacAddress": "zz"}
    )
    with pytest.raises(InvalidParameter) as caught:
        check_endpoint(network, settings)
    assert str(caught.value).splitlines() == [
        "invalid config for network net: invalid endpoint settings:",
        "invalid IPv4 address: x",
        "invalid IPv6 address: ::",
        "invalid link-local IP address: y",
        "invalid MAC address: zz",
    ]


def test_records_survive_their_json_and_know_no_fields_of_the_future() -> None:
    network = NetworkRecord(
        "id", "net", "bridge", "now", (Subnet("10.0.0.0/24", gateway="10.0.0.1"),), labels={"a": "b"}
    )
    assert NetworkRecord.from_json({**json.loads(json.dumps(network.to_json())), "later": 1}) == network
    port = PortBindingRecord("tcp", "0.0.0.0", 80, "10.0.0.2", 80)
    endpoint = EndpointRecord("e", "id", "net", "02:00:00:00:00:01", "10.0.0.2/24", aliases=("x",), ports=(port,))
    sandbox = SandboxRecord(
        "c", "web", "host", "", "/ns", (endpoint,), servers=("10.0.0.53",), bindings={"80/tcp": [["", "80"]]}
    )
    assert SandboxRecord.from_json(json.loads(json.dumps({**asdict(sandbox), "later": 1}))) == sandbox


def test_filters_match_labels_parts_and_truths() -> None:
    chosen = Selection(
        {"label": ["a", "b=1"], "label!": ["c"], "dangling": ["1"], "name": ["^we"]},
        ("label", "label!", "dangling", "name"),
    )
    assert chosen.labels({"a": "", "b": "1"})
    assert not chosen.labels({"a": "", "b": "2"})
    assert not chosen.labels({"a": "", "b": "1", "c": ""})
    assert chosen.truth("dangling", True) and not chosen.truth("dangling", False)
    assert chosen.part("name", "web") and not chosen.part("name", "the-web")
    for value in (["maybe"], ["true", "false"]):
        with pytest.raises(InvalidParameter, match="invalid filter"):
            Selection({"dangling": value}, ("dangling",)).truth("dangling", True)


def test_times_as_clients_write_them() -> None:
    assert duration_seconds("1h30m") == 5400 and duration_seconds("1.5s") == 1.5 and duration_seconds("soon") is None
    assert parse_time("1700000000") == 1700000000
    assert parse_time("2023-11-14T22:13:20Z") == 1700000000
    assert parse_time("2023-11-14T22:13:20.123456789+00:00") == pytest.approx(1700000000.123, abs=0.001)
    assert parse_time("10m") == pytest.approx(time.time() - 600, abs=60)
    with pytest.raises(InvalidParameter, match=re.escape('parsing time "x"')):
        parse_time("x")
    before = created_before({"until": ["2023-11-14"]})
    assert before is not None and before("2023-11-13T00:00:00Z") and not before("2023-11-15T00:00:00Z")
    assert created_before({}) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Name": "a/b"}, "invalid network name"),
        ({"Name": "a\ud800"}, "invalid network name"),
        ({"Options": {"com.docker.network.bridge.name": "eth*"}}, "invalid com.docker.network.bridge.name"),
        ({"Options": {"com.docker.network.bridge.name": ".."}}, "invalid com.docker.network.bridge.name"),
        ({"Options": {"com.docker.network.bridge.name": "x" * 16}}, "invalid com.docker.network.bridge.name"),
        ({"Driver": "macvlan", "Options": {"parent": "e 0"}}, "invalid parent value"),
        ({"Driver": "macvlan", "Options": {"macvlan_mode": "x"}}, "requested macvlan mode 'x' is not valid"),
        ({"Options": {"com.docker.network.bridge.enable_icc": "maybe"}}, "failed to parse"),
        ({"Options": {"com.docker.network.bridge.gateway_mode_ipv4": "x"}}, "unknown gateway mode x"),
        ({"IPAM": {"Config": [{"Subnet": "0.0.0.0/0"}]}}, "unicast"),
        ({"IPAM": {"Config": [{"Subnet": "127.0.0.0/8"}]}}, "unicast"),
    ],
)
def test_what_would_harm_the_host_is_refused(body: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidParameter, match=text):
        check_create(NetworkCreate.model_validate({"Name": "net", **body}))


@pytest.mark.parametrize(
    "options",
    [
        {"com.docker.network.endpoint.ifname": "lo"},
        {"com.docker.network.endpoint.ifname": "a/b"},
        {"com.docker.network.endpoint.sysctls": "net./etc/passwd=x"},
        {"com.docker.network.endpoint.sysctls": "net.ipv4.conf.all.forwarding=1"},
    ],
)
def test_options_of_an_endpoint_reach_nothing_but_its_interface(options: dict[str, str]) -> None:
    network = NetworkRecord("id", "net", "bridge", "", (Subnet("10.0.0.0/24"),))
    with pytest.raises(InvalidParameter, match=next(iter(options))):
        check_endpoint(network, EndpointSettings.model_validate({"DriverOpts": options}))


def test_expression_that_backtracks_without_end_is_plain_text() -> None:
    chosen = Selection({"name": ["(a+)+$", "a*a*a*a*b"]}, ("name",))
    assert not chosen.part("name", "a" * 200 + "c")
