"""daemon.json read, refused and defaulted as dockerd does, each fault at its place."""

import json

import pytest
from moorage_contract.daemon_config import (
    LOG_PIPE_BYTES,
    RELOADABLE,
    SETTINGS,
    AddressPool,
    ConfigError,
    DaemonConfig,
    Ulimit,
    check,
    parse,
)


def faults(text: str, **flags: object) -> list[tuple[int, int, str]]:
    return [(fault.line, fault.column, fault.message) for fault in check(text, flags=flags)]


@pytest.mark.parametrize("text", ["", "  \n", "{}", "\ufeff{}", "\n{ }\n"])
def test_empty_file_is_all_defaults(text: str) -> None:
    config = parse(text)
    assert config == DaemonConfig()
    assert config.live_restore
    assert (config.log_driver, config.mtu, config.data_root) == ("json-file", 1500, "/var/lib/moorage")


def test_values_are_typed_and_normal() -> None:
    config = parse(
        json.dumps(
            {
                "default-shm-size": "128M",
                "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 64000, "Soft": 32000}},
                "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}],
                "registry-mirrors": ["http://mirror:5000"],
                "proxies": {"http-proxy": "http://proxy:80", "no-proxy": "*.example.com"},
                "log-opts": {"max-size": "10m", "max-file": "3"},
                "host-gateway-ip": "10.0.0.9",
                "bip": "192.168.1.1/24",
                "live-restore": False,
            }
        )
    )
    assert config.default_shm_size == 128 * 1024 * 1024
    assert config.default_ulimits == {"nofile": Ulimit("nofile", 32000, 64000)}
    assert config.default_address_pools == (AddressPool("172.30.0.0/16", 24),)
    assert config.registry_mirrors == ("http://mirror:5000/",)
    assert (config.http_proxy, config.https_proxy, config.no_proxy) == ("http://proxy:80", "", "*.example.com")
    assert config.host_gateway_ips == ("10.0.0.9",)
    assert not config.live_restore
    assert "bip" in config.given and "dns" not in config.given


def test_empty_values_of_the_full_example_count_as_not_given() -> None:
    config = parse(
        '{"mtu": 0, "dns": [], "bip": "", "log-level": "", "features": {}, "max-concurrent-uploads": 0, "exec-root": null, "icc": false}'
    )
    assert (config.mtu, config.dns, config.max_concurrent_uploads, config.exec_root) == (1500, (), 5, "/run/moorage")
    assert not config.icc


def test_unknown_keys_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('{"unknown-option": 1,\n "debug": true,\n  "nothing": {}}')
    assert str(caught.value) == "the following directives don't match any configuration option: unknown-option, nothing"
    assert [(fault.key, fault.line, fault.column) for fault in caught.value.faults] == [
        ("unknown-option", 1, 2),
        ("nothing", 3, 3),
    ]


def test_near_miss_is_pointed_out() -> None:
    [(_, _, message)] = faults('{"live-restor": true}')
    assert message.endswith('live-restor (did you mean "live-restore"?)')


def test_flag_and_file_conflict_in_dockerds_words() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            '{"labels": ["a=1", "b=2"], "debug": true, "proxies": {"http-proxy": "http://u:secret@p"}}',
            flags={"labels": ["c=3"], "debug": False, "http-proxy": "http://x"},
        )
    assert str(caught.value) == (
        "the following directives are specified both as a flag and in the configuration file: labels: (from flag: [c=3], from file: [a=1 b=2]), "
        "debug: (from flag: false, from file: true), http-proxy: (from flag: http://x, from file: http://xxxxx:xxxxx@p)"
    )


def test_flags_count_when_the_file_is_silent() -> None:
    config = parse('{"debug": true}', flags={"labels": ["a=1"], "bip": None})
    assert (config.debug, config.labels) == (True, ("a=1",))


def test_all_faults_are_reported_together_at_their_places() -> None:
    text = '{\n  "debug": "yes",\n  "dns": ["1.1.1.1",\n          "1.1.1.1o"],\n  "log-opts": {\n    "max-file": 3\n  },\n  "mtu": -1\n}'
    assert [(line, column) for line, column, _ in faults(text)] == [(2, 12), (3, 10), (6, 17), (8, 10)]
    sentences = "\n".join(message for _, _, message in faults(text))
    assert 'debug: expected true or false, got the string "yes"' in sentences
    assert "IP address is not correctly formatted: 1.1.1.1o" in sentences
    assert 'write "3" in quotes' in sentences
    assert "invalid default MTU: -1" in sentences


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ('{"debug": tru}', 1, 11, "invalid character 't'"),
        ('{\n  "debug": true,\n}', 3, 1, "remove that comma"),
        ('{"debug": true', 1, 15, "unexpected end of JSON input"),
        ('{"debug" true}', 1, 10, '":" after the key'),
        ('{"a": "x', 1, 7, "not closed"),
        ('{\n// note\n"debug": true}', 2, 1, "no comments"),
        ("{'debug': true}", 1, 2, "double quotes"),
        ("[1]", 1, 1, "begin with {"),
        ('{"a": 1} x', 1, 10, "after top-level value"),
        ('{"a": "\\q"}', 1, 8, "escape"),
        ('{"a": [1, 2}', 1, 12, "in this list"),
    ],
)
def test_syntax_fault_is_at_its_place(text: str, line: int, column: int, said: str) -> None:
    [found] = check(text)
    assert (found.line, found.column) == (line, column)
    assert found.message.startswith("invalid JSON: ") and said in found.message


def test_deep_nesting_is_refused_without_a_traceback() -> None:
    [found] = check('{"builder": ' + "[" * 100_000)
    assert "nested too deeply" in found.message


def test_duplicate_key_is_refused_at_the_second() -> None:
    [(line, column, message)] = faults('{"debug": true,\n "debug": false}')
    assert (line, column) == (2, 2) and "twice, first at line 1" in message


@pytest.mark.parametrize("key", ["pipe-size", "log-pipe-size", "fifo-size", "pipe_size", "log-fifo"])
def test_pipe_size_is_refused_with_the_reason(key: str) -> None:
    [(line, _, message)] = faults(json.dumps({key: 1048576}))
    assert line == 1 and "fixed at 64 KiB" in message and "would only move the moment" in message
    assert LOG_PIPE_BYTES == 64 * 1024


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("bip", "nonsense", "invalid bip: invalid CIDR address: nonsense"),
        ("bip", "10.0.0.0/24", "such as 10.0.0.1/24"),
        ("bip", "10.0.0.1", "invalid CIDR address"),
        ("fixed-cidr-v6", "10.0.0.0/8", "no IPv6 subnet"),
        ("log-level", "foobar", "invalid logging level: foobar"),
        ("log-format", "xml", "invalid log format: xml"),
        ("labels", ["one"], "bad attribute format: one"),
        ("labels", ["a=1", "a=2"], "conflict labels for a=2 and a=1"),
        ("dns-search", ["123456"], "123456 is not a valid domain"),
        ("max-concurrent-downloads", -10, "invalid max concurrent downloads: -10"),
        ("max-concurrent-uploads", -10, "invalid max concurrent uploads: -10"),
        ("max-download-attempts", -10, "invalid max download attempts: -10"),
        ("registry-mirrors", ["mirror:5000"], "no scheme specified"),
        ("registry-mirrors", ["ftp://mirror"], 'unsupported scheme "ftp"'),
        ("registry-mirrors", ["http://u:secret@m"], "username/password not allowed"),
        ("default-ipc-mode", "host", 'IPC mode "host" is not supported as default value'),
        ("default-cgroupns-mode", "shared", "invalid default cgroup namespace (shared)"),
        ("log-driver", "syslog", "no log driver named 'syslog' is registered"),
        ("log-opts", {"colour": "x"}, "unknown log opt 'colour' for json-file log driver"),
        ("log-opts", {"max-buffer-size": "1m"}, "mode=non-blocking"),
        ("exec-opts", ["native.cgroupdriver=systemd"], "cgroupfs"),
        ("storage-driver", "btrfs", "driver not supported: btrfs"),
        ("default-runtime", "kata", "specified default runtime 'kata' does not exist"),
        ("default-ulimits", {"nofile": {"Name": "nofile", "Soft": 3, "Hard": 2}}, "3 > 2"),
        ("default-address-pools", [{"base": "10.0.0.0/16", "size": 8}], "does not fit"),
        (
            "default-address-pools",
            [{"base": "10.0.0.0/16", "size": 24}, {"base": "10.0.1.0/24", "size": 24}],
            "overlap",
        ),
        ("hosts", ["unix://relative"], "invalid bind address"),
        ("network-diagnostic-port", 70000, "value must be between 0 and 65535"),
        ("api-cors-header", "*", "use a reverse proxy"),
        ("userns-remap", "a:b:c", "Invalid user/group specification"),
        ("default-shm-size", "lots", "invalid size: 'lots'"),
    ],
)
def test_wrong_value_is_refused_with_a_sentence(key: str, value: object, said: str) -> None:
    text = json.dumps({key: value})
    [(line, column, message)] = faults(text)
    assert said in message
    assert "secret" not in message
    assert (line, column) >= (1, 2)


def test_wrong_flag_is_refused_without_a_place() -> None:
    assert faults("", bip="nonsense")[0][:2] == (0, 0)


def test_keys_that_change_nothing_are_said_to() -> None:
    config = parse('{"containerd": "/run/c.sock", "builder": {"gc": {"enabled": true}}}')
    assert len(config.notices) == 2 and all("has no effect" in notice for notice in config.notices)


def test_reloadable_keys_are_dockerds() -> None:
    assert {
        "debug",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "default-runtime",
        "runtimes",
        "authorization-plugins",
        "insecure-registries",
        "registry-mirrors",
        "shutdown-timeout",
        "features",
        "default-shm-size",
        "default-ipc-mode",
        "default-cgroupns-mode",
        "network-diagnostic-port",
    } <= RELOADABLE
    assert not RELOADABLE & {"bip", "data-root", "log-driver", "dns"}


def test_every_default_passes_its_own_check() -> None:
    for found in SETTINGS.values():
        if isinstance(found.default, str | int) and found.default != "":
            assert found.kind.check(found.default) == found.default
