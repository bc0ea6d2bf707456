"""Flags, environment and file become one Config, and every mistake is named with its place."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import pwd
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.config import exits, settings
from trackd.config.kinds import WrongValue
from trackd.config.settings import (
    SETTINGS,
    Config,
    ConfigError,
    Setting,
    check_file,
    default_file,
    live_part,
    load,
)
from trackd_client.wire.protocol import Limits

EXAMPLE = Path(__file__).parents[4] / "systemd" / "trackd.toml"
NAMED = {"cluster_name": "example.com"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.toml"


def defaults() -> Config:
    return load(NAMED, {}, None, uid=0)


def problems(
    flags: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(NAMED if flags is None else flags, environ or {}, file, uid=0)
    return caught.value.problems


# --- what comes from where ---------------------------------------------------------------------


def test_a_name_is_all_that_a_daemon_needs() -> None:
    config = load(NAMED, {"XDG_RUNTIME_DIR": "/run/user/7"}, None, uid=7)
    assert config.cluster_name == "example.com"
    assert config.endpoint == "ipc:///run/user/7/trackd/default/trackd.sock"
    assert config.state_dir == "/run/user/7/trackd/default"
    assert config.own_place
    assert config.proxy_expiry == 180.0
    assert config.connection_count == 0


def test_flags_win_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text("connection_count = 1\nproxy_expiry = 1\ndial_burst = 1\n")
    environ = {"TRACKD_CONNECTION_COUNT": "2", "TRACKD_PROXY_EXPIRY": "2"}
    config = load({**NAMED, "connection_count": "3"}, environ, file, uid=0)
    assert config.connection_count == 3
    assert config.proxy_expiry == 2.0
    assert config.dial_burst == 1


def test_every_setting_can_come_from_each_of_the_three(file: Path) -> None:
    samples: dict[str, tuple[str, str, object]] = {
        "cluster_name": ("other", '"other"', "other"),
        "endpoint": ("/x/y.sock", '"/x/y.sock"', "ipc:///x/y.sock"),
        "state_dir": ("/s", '"/s"', "/s"),
        "proxy_expiry": ("1.5", "1.5", 1.5),
        "max_ttl": ("7", "7", 7.0),
        "connection_count": ("-1", "-1", -1),
        "log_level": ("debug", '"debug"', "debug"),
        "socket_mode": ("0660", '"0660"', 0o660),
        "heartbeat_ttl": ("2", "2", 2.0),
        "claim_timeout": ("0.5", "0.5", 0.5),
        "admin_users": ("root,7", '["root", 7]', ("root", 7)),
        "admin_groups": ("7, root", '[7, "root"]', (7, "root")),
        "count_role": ("admin", '"admin"', "admin"),
        "targets": ("any", '"any"', "any"),
        "dial_rate": ("1e3", "1e3", 1000.0),
        "dial_burst": ("7", "7", 7),
        "disconnect_threshold": ("9", "9", 9.0),
        "history": ("7", "7", 7),
        "history_age": ("60", "60", 60.0),
        "http": ("[::1]:9440", '"[::1]:9440"', "[::1]:9440"),
        "max_frame": ("2048", "2048", 2048),
        "max_proxies": ("7", "7", 7),
        "max_principals": ("7", "7", 7),
        "max_name": ("77", "77", 77),
        "max_sessions": ("7", "7", 7),
        "max_outstanding": ("7", "7", 7),
        "max_waiters": ("7", "7", 7),
        "max_tracked": ("7", "7", 7),
        "max_leases": ("7", "7", 7),
        "tunnel_timeout": ("7.5", "7.5", 7.5),
        "max_reply_bytes": ("70_000", "70_000", 70_000),
        "quota_sessions": ("7", "7", 7),
        "quota_leases": ("7", "7", 7),
        "quota_waiters": ("7", "7", 7),
        "quota_reply_bytes": ("70_000", "70_000", 70_000),
        "quota_subscriptions": ("7", "7", 7),
        "leaders": ("a=h:1, b=[::1]:2", '["a=h:1", "b=[::1]:2"]', ("a=h:1", "b=[::1]:2")),
        "leaders_dir": ("/d", '"/d"', "/d"),
        "key_file": ("/k", '"/k"', "/k"),
        "on_partition": ("close", '"close"', "close"),
        "ring": ("b", '"b"', "b"),
        "listen": ("0.0.0.0:7717", '"0.0.0.0:7717"', "0.0.0.0:7717"),
        "hosts_dir": ("/h", '"/h"', "/h"),
        "admin_hosts": ("a,b", '["a", "b"]', ("a", "b")),
        "host_ttl": ("7", "7", 7.0),
        "leader_ttl": ("7", "7", 7),
        "etcd_endpoints": ("h:1", '["h:1"]', ("h:1",)),
        "etcd_ca": ("/c", '"/c"', "/c"),
        "etcd_cert": ("/c", '"/c"', "/c"),
        "etcd_key": ("/k", '"/k"', "/k"),
    }
    assert set(samples) == set(SETTINGS)
    for setting in SETTINGS.values():
        text, toml, value = samples[setting.name]
        assert value != getattr(defaults(), setting.name)
        table = f"[{setting.table}]\n" if setting.table else ""
        file.write_text(f"{table}{setting.name} = {toml}\n")
        for config in (
            load({**NAMED, setting.name: text}, {}, None, uid=0),
            load({} if setting.name in NAMED else NAMED, {setting.variable: text}, None, uid=0),
            load({} if setting.name in NAMED else NAMED, {}, file, uid=0),
        ):
            assert getattr(config, setting.name) == value


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load({**NAMED, "log_level": None, "state_dir": None}, {}, None, uid=0) == defaults()


def test_an_empty_variable_counts_as_not_set_except_where_empty_means_none(file: Path) -> None:
    file.write_text('log_level = "debug"\nstate_dir = "/s"\nadmin_users = [7]\n')
    environ = {"TRACKD_LOG_LEVEL": "", "TRACKD_STATE_DIR": "", "TRACKD_ADMIN_USERS": ""}
    config = load(NAMED, environ, file, uid=0)
    assert config.log_level == "debug"
    assert config.state_dir == ""
    assert config.admin_users == ()


@pytest.mark.parametrize("expiry", ["0", "-1", "-0.5"])
def test_an_expiry_of_0_or_less_means_the_default(expiry: str) -> None:
    assert load({**NAMED, "proxy_expiry": expiry}, {}, None, uid=0) == defaults()


def test_the_state_directory_follows_a_socket_that_was_given() -> None:
    config = load({**NAMED, "endpoint": "ipc:///tmp/mine.sock"}, {}, None, uid=0)
    assert config.state_dir == "/tmp/mine.sock.state"
    assert not config.own_place


def test_an_empty_state_directory_keeps_none(file: Path) -> None:
    file.write_text('state_dir = ""\n')
    assert load(NAMED, {}, file, uid=0).state_dir == ""
    assert load({**NAMED, "state_dir": ""}, {}, None, uid=0).state_dir == ""


def test_the_file_s_own_variable_is_no_setting() -> None:
    assert load(NAMED, {"TRACKD_CONFIG": "/x.toml", "HOME": "/"}, None, uid=0) == defaults()


# --- what is wrong -----------------------------------------------------------------------------

WRONG_LINES = [
    ("proxy_expirey = 3", "proxy_expirey is not a setting; did you mean proxy_expiry?"),
    ("proxy-expiry = 3", "proxy-expiry is not a setting; did you mean proxy_expiry?"),
    ("bogus = 3", "bogus is not a setting; use cluster_name, endpoint, state_dir"),
    ("max_frame = 3", "max_frame belongs under [limits]"),
    ("max_frames = 3", "max_frames is not a setting; did you mean [limits] max_frame?"),
    ("[limits]\nproxy_expiry = 3", "[limits] proxy_expiry belongs at the top"),
    (
        "[limits]\nmax_proxy = 3",
        "[limits] max_proxy is not a setting; did you mean [limits] max_prox",
    ),
    ("[limits]\nzzz = 3", "[limits] zzz is not a setting; use max_frame, max_proxies"),
    ("[limit]\nmax_frame = 3", "limit is not a setting; "),
    ("limits = 3", "limits is a table; write [limits] above its keys"),
    ("proxy_expiry = '3'", "proxy_expiry: '3' is not a number of seconds from -31,536,000 to"),
    ("proxy_expiry = true", "proxy_expiry: true is not a number of seconds"),
    ("proxy_expiry = nan", "proxy_expiry: nan is not a number of seconds"),
    ("proxy_expiry = inf", "proxy_expiry: inf is not a number of seconds"),
    ("heartbeat_ttl = 0.5", "heartbeat_ttl: 0.5 is not a number of seconds from 1 to 86,400"),
    ("claim_timeout = -1", "claim_timeout: -1 is not a number of seconds from 0 to 31,536,000"),
    ("dial_rate = -1", "dial_rate: -1 is not a number of dials per second from 0 to 1,000,000"),
    ("connection_count = 1.0", "connection_count: 1.0 is not a whole number of connections"),
    ("connection_count = true", "connection_count: true is not a whole number of connections"),
    (f"connection_count = {2**31}", "is not a whole number of connections from -2,147,483,648"),
    ("dial_burst = 0", "dial_burst: 0 is not a whole number of dials from 1 to 1,000,000"),
    ("cluster_name = 3", 'cluster_name: 3 is not a string; write it in quotes, "..."'),
    ("cluster_name = ''", "cluster_name: '' is not 1 to 255 bytes of UTF-8"),
    (f"cluster_name = '{'x' * 256}'", f"'{'x' * 79}... is not 1 to 255 bytes"),
    ('cluster_name = "a\\nb"', r"cluster_name: 'a\nb' is not 1 to 255 bytes of UTF-8 without"),
    ("endpoint = 'tcp://x'", "endpoint: 'tcp://x' cannot be served: 'tcp://x' is not an ipc"),
    ('state_dir = "\\u0000"', r"state_dir: '\x00' is not a directory"),
    (
        "log_level = 'Warn'",
        "'Warn' is not one of debug, info, warning, error; did you mean warning",
    ),
    ("log_level = 'x'", "log_level: 'x' is not one of debug, info, warning, error"),
    ("count_role = 'root'", "count_role: 'root' is not one of client, admin"),
    ("socket_mode = 0o660", "socket_mode: 432 is not a string; write it in quotes"),
    ("socket_mode = '660x'", 'is not an octal mode from "0600" to "0777" that lets the owner'),
    ("socket_mode = '0060'", "socket_mode: '0060' is not an octal mode"),
    ("socket_mode = '10600'", "socket_mode: '10600' is not an octal mode"),
    ("admin_users = 'alice'", "'alice' is not a list of user names and numbers, such as [\"NAME\""),
    ("admin_users = [-1]", "admin_users: [-1] is not a list of user names and numbers"),
    ("admin_users = [true]", "admin_users: [True] is not a list of user names and numbers"),
    ("http = 9440", "http: 9440 is not a string; write it in quotes"),
    ("http = '0.0.0.0:9440'", "http: '0.0.0.0:9440' is not on loopback, and other hosts"),
    ("http = 'localhost'", "http: 'localhost' is not HOST:PORT; write 127.0.0.1:9440, [::1]:9440"),
    ("http = 'localhost:0'", "http: 'localhost:0' has no port from 1 to 65535; write 127.0.0.1"),
    ("http = 'unix:http.sock'", "'unix:http.sock' is not an absolute path after unix:; write unix"),
    (
        "[limits]\nmax_frame = 12",
        "[limits] max_frame: 12 is not a whole number of bytes from 1,024",
    ),
    ("[limits]\nmax_waiters = 0", "[limits] max_waiters: 0 is not a whole number of requests from"),
    ("[limits", "is not TOML: "),
]


@pytest.mark.parametrize(("line", "sentence"), WRONG_LINES)
def test_what_is_wrong_in_the_file_is_named_with_its_place(
    file: Path, line: str, sentence: str
) -> None:
    file.write_text(line)
    (problem,) = problems(file=file)
    assert problem.startswith(f"{file}")
    assert sentence in problem


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {"TRACKD_LOG_LEVEL": "loud"},
            "environment: TRACKD_LOG_LEVEL: 'loud' is not one of debug, info, warning, error",
        ),
        (
            {"TRACKD_PROXY_EXPIREY": "3"},
            "environment: TRACKD_PROXY_EXPIREY is not a setting; did you mean TRACKD_PROXY_EXPIRY?",
        ),
        ({"TRACKD_ZZZ": "3"}, "environment: TRACKD_ZZZ is not a setting; unset it"),
        ({"TRACKD_MAX_FRAME": "1M"}, "TRACKD_MAX_FRAME: '1M' is not a whole number of bytes"),
        ({"TRACKD_PROXY_EXPIRY": "3m"}, "TRACKD_PROXY_EXPIRY: '3m' is not a number of seconds"),
        ({"TRACKD_ADMIN_USERS": "root,,7"}, "TRACKD_ADMIN_USERS: 'root,,7' is not a list of user"),
        ({"TRACKD_CLUSTER_NAME": "\udcff"}, r"TRACKD_CLUSTER_NAME: '\udcff' is not UTF-8"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_with_its_variable(
    environ: dict[str, str], sentence: str
) -> None:
    (problem,) = problems(environ=environ)
    assert sentence in problem


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"proxy_expiry": "soon"}, "flag: --proxy-expiry: 'soon' is not a number of seconds"),
        ({"proxy_expiry": "nan"}, "flag: --proxy-expiry: 'nan' is not a number of seconds"),
        ({"connection_count": "1.5"}, "flag: --connection-count: '1.5' is not a whole number"),
        ({"connection_count": ""}, "flag: --connection-count: '' is not a whole number"),
        ({"dial_burst": 0}, "flag: --dial-burst: 0 is not a whole number of dials"),
        ({"cluster_name": ""}, "flag: --cluster-name: '' is not 1 to 255 bytes"),
    ],
)
def test_what_is_wrong_in_a_flag_is_named_with_the_flag(
    flags: dict[str, object], sentence: str
) -> None:
    (problem,) = problems(flags=NAMED | flags)
    assert problem.startswith(sentence)


def test_a_name_that_is_missing_is_asked_for_in_all_three_ways() -> None:
    (problem,) = problems(flags={})
    assert "pass --cluster-name NAME, set TRACKD_CLUSTER_NAME, or write cluster_name" in problem


def test_everything_that_is_wrong_is_said_at_once(file: Path) -> None:
    file.write_text("bogus = 1\nlog_level = 2\n[limits]\nmax_name = 0\n")
    with pytest.raises(ConfigError) as caught:
        load({"dial_rate": "x"}, {"TRACKD_DIAL_BURST": "x"}, file, uid=7)
    lines = str(caught.value).split("\n  ")
    assert lines[0] == "the configuration has 7 problems:"
    assert len(lines) == 8
    for line, word in zip(
        lines[1:],
        ["bogus", "log_level", "max_name", "TRACKD_DIAL_BURST", "--dial-rate", "cluster", "--endp"],
        strict=True,
    ):
        assert word in line


def test_one_problem_is_one_line(file: Path) -> None:
    file.write_text("bogus = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(NAMED, {}, file, uid=0)
    assert "\n" not in str(caught.value)


def test_a_value_that_a_flag_overrides_must_be_right_all_the_same(file: Path) -> None:
    file.write_text("log_level = 'loud'\n")
    (problem,) = problems(flags={**NAMED, "log_level": "debug"}, file=file)
    assert "'loud'" in problem


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert problems(file=tmp_path / "none") == (
        f"{tmp_path}/none cannot be read: No such file or directory",
    )
    assert problems(file=tmp_path) == (f"{tmp_path} cannot be read: Is a directory",)


def test_a_file_that_is_not_text_is_named(file: Path) -> None:
    file.write_bytes(b"log_level = '\xff'")
    assert problems(file=file) == (f"{file} is not UTF-8, as TOML is: see byte 13",)


@given(st.sampled_from([*SETTINGS.values()]), st.text() | st.integers().map(str))
def test_any_text_is_a_value_or_a_problem(setting: Setting, text: str) -> None:
    with contextlib.suppress(WrongValue):
        value = setting.kind.parse(text)
        assert setting.kind.parse(text) == value  # and nothing but WrongValue was raised


@given(
    st.sampled_from([*SETTINGS.values()]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=3,
    ),
)
def test_any_value_is_taken_as_its_own_type_or_is_a_problem(
    setting: Setting, value: object
) -> None:
    with contextlib.suppress(WrongValue):
        kept = setting.kind.check(value)
        assert type(kept) is type(getattr(Config(), setting.name))


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ({"endpoint": "tcp://x"}, exits.UNUSABLE),
        ({"endpoint": "/" + "x" * 107}, exits.UNUSABLE),
        ({"endpoint": "tcp://x", "log_level": "x"}, exits.USAGE),
        ({"log_level": "x"}, exits.USAGE),
    ],
)
def test_a_wrong_endpoint_alone_has_an_exit_code_of_its_own(
    flags: dict[str, object], code: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(NAMED | flags, {}, None, uid=0)
    assert caught.value.code == code


def test_a_user_without_a_place_is_told_to_name_an_endpoint() -> None:
    with pytest.raises(ConfigError, match=r"pass --endpoint") as caught:
        load(NAMED, {}, None, uid=7)
    assert caught.value.code == exits.UNUSABLE


# --- the table and the example -----------------------------------------------------------------


def test_every_default_is_a_value_that_its_setting_takes() -> None:
    unlike_toml = {"cluster_name", "endpoint", "socket_mode"}
    for setting in SETTINGS.values():
        default = getattr(Config(), setting.name)
        if isinstance(default, tuple):
            assert setting.kind.check(list(default)) == default
        elif setting.name not in unlike_toml:
            assert setting.kind.check(default) == default
            assert type(setting.kind.check(default)) is type(default)


def test_every_setting_says_what_it_is() -> None:
    for field in dataclasses.fields(Config):
        assert field.name == "own_place" or field.name in SETTINGS
    for setting in SETTINGS.values():
        assert setting.help
        assert setting.default
        assert setting.kind.metavar
        assert re.fullmatch(r"--[a-z-]+", setting.flag)
        assert re.fullmatch(r"TRACKD_[A-Z_]+", setting.variable)


def test_what_changes_live_is_what_can() -> None:
    fixed = {setting.name for setting in SETTINGS.values() if not setting.live}
    assert fixed == {
        "cluster_name",
        "endpoint",
        "state_dir",
        "socket_mode",
        "heartbeat_ttl",
        "claim_timeout",
        "http",
        "leaders",
        "leaders_dir",
        "key_file",
        "on_partition",
        "ring",
        "listen",
        "hosts_dir",
        "host_ttl",
        "leader_ttl",
        "etcd_endpoints",
        "etcd_ca",
        "etcd_cert",
        "etcd_key",
    }


def test_each_setting_that_is_not_live_says_why() -> None:
    assert all(setting.live == (setting.fixed == "") for setting in SETTINGS.values())
    assert SETTINGS["endpoint"].fixed == "clients are connected to the old one"


def test_a_reload_takes_the_live_part_alone() -> None:
    wanted = load({**NAMED, "proxy_expiry": "7", "claim_timeout": "9"}, {}, None, uid=0)
    config, changed, refused = live_part(defaults(), wanted)
    assert config == dataclasses.replace(defaults(), proxy_expiry=7.0)
    assert [setting.name for setting in changed] == ["proxy_expiry"]
    assert [setting.name for setting in refused] == ["claim_timeout"]
    assert live_part(wanted, wanted) == (wanted, [], [])


def test_systemd_s_directory_holds_a_file_for_each_cluster_or_one_for_all(tmp_path: Path) -> None:
    environ = {"CONFIGURATION_DIRECTORY": str(tmp_path)}
    assert default_file(environ, "a-b") is None
    (tmp_path / "trackd.toml").touch()
    assert default_file(environ, "a-b") == tmp_path / "trackd.toml"
    (tmp_path / "a\\x2db.toml").touch()
    assert default_file(environ, "a-b") == tmp_path / "a\\x2db.toml"
    assert default_file(environ, "c") == tmp_path / "trackd.toml"
    assert default_file(environ, None) == tmp_path / "trackd.toml"
    assert default_file({}, "a-b") is None


def test_the_limits_of_the_wire_have_the_defaults_of_the_protocol() -> None:
    assert defaults().limits == Limits()
    assert load({**NAMED, "max_name": "99"}, {}, None, uid=0).limits == Limits(max_name=99)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        defaults().dial_burst = 3  # type: ignore[misc] # the point


def test_the_example_as_shipped_changes_no_default() -> None:
    assert load(NAMED, {}, EXAMPLE, uid=0) == defaults()


def test_the_example_holds_every_setting_with_its_default(file: Path) -> None:
    text, count = re.subn(r"(?m)^#(?=[a-z])", "", EXAMPLE.read_text())
    assert count == len(SETTINGS)
    file.write_text(text)
    given = load({}, {}, file, uid=0)
    # The endpoint is written out there; that it is the default one is the only difference.
    assert dataclasses.replace(given, own_place=True) == defaults()
    keys = re.findall(r"(?m)^(\w+) =", text)
    assert keys == list(SETTINGS)


def test_the_example_says_of_each_setting_whether_it_is_live() -> None:
    top, rest = EXAMPLE.read_text().split("[limits]")
    limits, rest = rest.split("[quotas]")
    quotas, fleet = rest.split("[fleet]")
    assert quotas
    assert "All of them are live" in top
    assert "All of them are live" in limits
    for paragraph in f"{top}\n\n{fleet}".split("\n\n"):
        for name in re.findall(r"(?m)^#(\w+) =", paragraph):
            assert SETTINGS[name].live == bool(re.search(r"\bLive\.", paragraph)), name


def test_a_file_alone_may_leave_out_the_name(file: Path) -> None:
    file.write_text("dial_burst = 3\n")
    assert check_file(file).dial_burst == 3
    assert check_file(file).cluster_name == ""


def test_an_admin_may_be_anybody_whom_the_host_knows(file: Path) -> None:
    user, group = pwd.getpwall()[0].pw_name, grp.getgrall()[0].gr_name
    file.write_text(f"admin_users = ['{user}']\nadmin_groups = ['{group}']\n")
    assert check_file(file).admin_users == (user,)
    assert check_file(file).admin_groups == (group,)


KUBERNETES = {
    "TRACKD_SERVICE_HOST": "10.0.0.1",
    "TRACKD_SERVICE_PORT": "80",
    "TRACKD_SERVICE_PORT_METRICS": "80",
    "TRACKD_PORT": "tcp://10.0.0.1:80",
    "TRACKD_PORT_80_TCP": "tcp://10.0.0.1:80",
    "TRACKD_PORT_80_TCP_PROTO": "tcp",
    "TRACKD_PORT_80_TCP_PORT": "80",
    "TRACKD_PORT_80_TCP_ADDR": "10.0.0.1",
    "TRACKD_METRICS_SERVICE_HOST": "10.0.0.1",
    "TRACKD_METRICS_PORT_9440_TCP_ADDR": "10.0.0.1",
}


@pytest.mark.parametrize(
    "environ",
    [
        KUBERNETES,
        {"TRACKD_LEASE": "7", "TRACKD_CLAIM_FD": "3", "TRACKD_REPLY_FD": "4"},
        {"TRACKD_CLAIM_SOCKET": "/run/user/1000/trackctl-claims-x/7"},
    ],
)
def test_variables_of_kubernetes_and_of_hold_are_not_taken_for_settings(
    environ: dict[str, str],
) -> None:
    assert load({"cluster_name": "x", "endpoint": "/x/y"}, environ, None).cluster_name == "x"


def test_no_setting_has_the_name_of_a_variable_of_kubernetes_or_hold() -> None:
    for setting in SETTINGS.values():
        assert not settings._FOREIGN_VARIABLES.fullmatch(setting.variable), setting.name
