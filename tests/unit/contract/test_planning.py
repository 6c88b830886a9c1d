"""The plan says beforehand what a new daemon.json interrupts; edits leave what they do not touch."""

import argparse
import json

import pytest
from moorage_contract.daemon_config import (
    ConfigError,
    Cost,
    SyntaxFault,
    add_arguments,
    fingerprint,
    flags_from_namespace,
    parse,
    plan,
    set_key,
)


def test_reloadable_change_is_a_reload() -> None:
    found = plan("{}", '{"debug": true, "labels": ["a=b"]}')
    assert found.mode is Cost.RELOAD and found.apply_mode == "reload"
    assert {change.key for change in found.changes} == {"debug", "labels"}


def test_dearest_change_decides() -> None:
    found = plan('{"debug": true}', '{"debug": false, "dns": ["1.1.1.1"], "bip": "10.9.0.1/24"}')
    assert {change.key: change.cost for change in found.changes} == {
        "debug": Cost.RELOAD,
        "dns": Cost.RESTART,
        "bip": Cost.CONTAINERS,
    }
    assert found.mode is Cost.CONTAINERS and found.apply_mode == "restart"


def test_change_of_form_alone_changes_nothing() -> None:
    found = plan('{"debug":true}', '{\n  "debug": true,\n  "icc": true\n}')
    assert not found.changes and found.mode is Cost.RELOAD and found.sentence == "Nothing changes."


def test_key_taken_out_needs_a_restart_where_reload_would_keep_it() -> None:
    assert plan('{"labels": ["a=b"]}', "{}").mode is Cost.RESTART
    assert plan('{"max-concurrent-uploads": 2}', "{}").mode is Cost.RELOAD


def test_restart_without_live_restore_before_and_after_says_that_containers_stop() -> None:
    assert "containers stop" in plan('{"live-restore": false}', '{"live-restore": true, "dns": ["1.1.1.1"]}').sentence
    assert "containers stop" in plan("{}", '{"live-restore": false, "dns": ["1.1.1.1"]}').sentence
    assert "containers stop" in plan('{"live-restore": false}', '{"live-restore": false, "dns": ["1.1.1.1"]}').sentence


def test_refused_file_has_no_plan() -> None:
    with pytest.raises(ConfigError):
        plan("{}", '{"nope": 1}')


def test_plan_from_a_broken_file_counts_it_as_empty() -> None:
    assert [change.key for change in plan("{nonsense", '{"debug": true}').changes] == ["debug"]


def test_fingerprint_holds_what_restore_relies_on() -> None:
    found = fingerprint(parse('{"bip": "10.9.0.1/24", "debug": true}'))
    assert found["bip"] == "10.9.0.1/24"
    assert {"bip", "fixed-cidr", "default-address-pools", "storage-driver", "data-root", "exec-opts"} <= found.keys()
    assert "debug" not in found
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("text", "key", "value", "wanted"),
    [
        ("", "debug", True, '{\n  "debug": true\n}\n'),
        ("{}", "debug", True, '{\n  "debug": true\n}'),
        ('{"x-mine": 1, "debug": false}', "debug", True, '{"x-mine": 1, "debug": true}'),
        ('{\n    "b": 1,\n    "a": 2\n}\n', "debug", True, '{\n    "b": 1,\n    "a": 2,\n    "debug": true\n}\n'),
        ('{\n  "a": 1,\n  "debug": true,\n  "b": 2\n}', "debug", None, '{\n  "a": 1,\n  "b": 2\n}'),
        ('{\n  "a": 1,\n  "debug": true\n}', "debug", None, '{\n  "a": 1\n}'),
        ('{"debug": true}', "debug", None, "{}"),
        ('{"a": 1}', "debug", None, '{"a": 1}'),
    ],
)
def test_set_key_leaves_the_rest_as_it_was(text: str, key: str, value: bool | None, wanted: str) -> None:
    assert set_key(text, key, value) == wanted


def test_set_key_puts_a_proxy_into_its_section() -> None:
    text = set_key('{"proxies": {"no-proxy": "a"}}', "http-proxy", "http://p")
    assert json.loads(text) == {"proxies": {"no-proxy": "a", "http-proxy": "http://p"}}
    assert json.loads(set_key(set_key(text, "http-proxy", None), "no-proxy", None)) == {}


def test_set_key_refuses_a_broken_text() -> None:
    with pytest.raises(SyntaxFault):
        set_key("{", "debug", True)


def arguments(*words: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_arguments(parser)
    return flags_from_namespace(parser.parse_args(words))


def test_flags_are_dockerds_and_land_under_their_key() -> None:
    found = arguments(
        "--debug", "-H", "unix:///a.sock", "--host=unix:///b.sock", "--label", "a=b", "--live-restore=false", "--dns", "1.1.1.1", "--bip", "10.0.0.1/24",
        "--log-opt", "max-size=1m", "--default-ulimit", "nofile=10:20", "--default-address-pool", "base=10.10.0.0/16,size=24",
        "--default-network-opt", "bridge=com.docker.network.driver.mtu=1400", "--mtu", "1400", "--storage-driver", "overlay2", "--iptables=0",
    )  # fmt: skip
    config = parse("", flags=found)
    assert config.debug and not config.live_restore and not config.iptables
    assert config.hosts == ("unix:///a.sock", "unix:///b.sock")
    assert (config.labels, config.log_opts, config.mtu) == (("a=b",), {"max-size": "1m"}, 1400)
    assert config.default_ulimits["nofile"].hard == 20
    assert config.default_network_opts == {"bridge": {"com.docker.network.driver.mtu": "1400"}}
    assert "bip" in found and "fixed-cidr" not in found


def test_flag_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="invalid ulimit"):
        arguments("--default-ulimit", "nofile=many")
