"""The configuration: one frozen `Config` from flags, the environment and a TOML file.

A setting is one field of `Config`: its type, default, bounds, help, and whether a reload changes it
stand there and nowhere else. Its flag (`--proxy-expiry`), environment variable
(`TRACKD_PROXY_EXPIRY`) and TOML key (`proxy_expiry`) follow from its name. Flags win over the
environment, and the environment wins over the file. An error names everything that is wrong, each
with its place and with what would be right.

This module reads the file that it is given and nothing else. It creates nothing, and does not check
whether a socket or a directory can be used: `trackd.host.places` does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from trackd.config import exits, kinds
from trackd.rules.tracker import DEFAULT_PROXY_EXPIRY
from trackd_client.wire import places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from trackd_client.wire.protocol import Limits

PREFIX: Final = "TRACKD_"
#: Names the file, like `--config`. It is not a setting, since it cannot stand in the file.
CONFIG_VARIABLE: Final = "TRACKD_CONFIG"

_YEAR: Final = 365 * 86_400.0
_MAX_SHOWN: Final = 80
#: Variables that others set for their own purpose, and that happen to begin as ours do: Kubernetes
#: sets some in each pod beside a Service called `trackd`, and `trackctl hold` for its command.
_FOREIGN_VARIABLES: Final = re.compile(
    r"TRACKD(_[A-Z0-9_]+)?_(SERVICE_(HOST|PORT(_[A-Z0-9_]+)?)|PORT(_\d+_(TCP|UDP|SCTP)"
    r"(_(PROTO|PORT|ADDR))?)?)|TRACKD_(LEASE|CLAIM_FD|REPLY_FD|CLAIM_SOCKET|TARGET(_ADDRESS)?)"
)
#: A name of a host or ring, and an address with its port; IPv6 stands in brackets.
_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
_ADDRESS: Final = r"([A-Za-z0-9_.-]+|\[[0-9a-fA-F:.]+\]):[1-9][0-9]{0,4}"
#: For outstanding requests that are not counted: a watch, a heartbeat, the request itself.
_SPARE_RANGES: Final = 64


class ConfigError(exits.StartError, ValueError):
    """The configuration is wrong.

    Attributes:
        problems: one sentence for each: the place, the value there, and what would be right.
        code: the exit code: UNUSABLE when nothing but the endpoint is wrong, otherwise USAGE.
    """

    def __init__(self, problems: Sequence[str], code: int = exits.USAGE) -> None:
        self.code = code
        self.problems = tuple(problems)
        head = (f"the configuration has {len(problems)} problems:",) if len(problems) > 1 else ()
        super().__init__("\n  ".join(head + self.problems))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting, under all its names.

    Attributes:
        name: the field of `Config`, which is the TOML key too.
        kind: the kind of its value.
        help: a phrase for people, with the unit and the meaning of 0.
        default: the default as people read it.
        fixed: why a reload does not change it in a running daemon; "" when it does.
        table: the TOML table that it stands in; "" is the top of the file.
    """

    name: str
    kind: kinds.Kind
    help: str
    default: str
    fixed: str
    table: str

    @property
    def live(self) -> bool:
        """Whether a reload changes it in a running daemon."""
        return not self.fixed

    @property
    def flag(self) -> str:
        """The flag, such as `--proxy-expiry`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """The environment variable, such as `TRACKD_PROXY_EXPIRY`."""
        return PREFIX + self.name.upper()

    @property
    def key(self) -> str:
        """The place in the file, such as `proxy_expiry` or `[limits] max_frame`."""
        return f"[{self.table}] {self.name}" if self.table else self.name


def _setting(
    default: object,
    kind: kinds.Kind,
    text: str,
    *,
    fixed: str = "",
    shown: str = "",
    table: str = "",
) -> Any:
    """Declare a field of `Config` that is a setting; `shown` is its default when that varies."""
    about = {"kind": kind, "help": text, "fixed": fixed, "table": table, "default": shown}
    return dataclasses.field(default=default, metadata=about)


def _limit(default: int, unit: str, low: int, high: int, text: str) -> Any:
    return _setting(default, kinds.whole(unit, low, high), text, table="limits")


def _fleet(default: object, kind: kinds.Kind, text: str) -> Any:
    return _setting(
        default, kind, text, fixed="the fleet was joined with the old one", table="fleet"
    )


def _quota(default: int, unit: str, text: str, low: int = 1) -> Any:
    return _setting(default, kinds.whole(unit, low, 1 << 40), text, table="quotas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of a daemon; durations are seconds. Only `load` makes and checks one.

    Attributes:
        own_place: whether the endpoint is the default one, whose directory the daemon makes.
    """

    cluster_name: str = _setting(
        "",
        kinds.cluster_name(),
        "the name of the cluster, such as example.com",
        fixed="the daemon's state is that of one cluster",
        shown="none; required",
    )
    endpoint: str = _setting(
        "",
        kinds.endpoint(),
        "the unix socket to serve: ipc:///PATH or a bare path, in a directory that exists",
        fixed="clients are connected to the old one",
        shown="trackd.sock in $RUNTIME_DIRECTORY, as root in /run/trackd/default, "
        "else in $XDG_RUNTIME_DIR/trackd/default",
    )
    state_dir: str = _setting(
        "",
        kinds.directory(),
        'where the state is kept that outlives the daemon; "" keeps none',
        fixed="the state is kept open there",
        shown="beside the socket",
    )
    proxy_expiry: float = _setting(
        DEFAULT_PROXY_EXPIRY,
        kinds.number("seconds", -_YEAR, _YEAR),
        "how long gossip without a TTL keeps a proxy; 0 or less: the default",
    )
    max_ttl: float = _setting(
        86_400.0,
        kinds.number("seconds", 1, _YEAR),
        "the longest TTL that gossip may give a proxy; a longer one counts as this",
    )
    connection_count: int = _setting(
        0,
        kinds.whole("connections", -(2**31), 2**31 - 1),
        "at most so many connections; 0 or less: one to every desired proxy",
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info",
        kinds.choice("debug", "info", "warning", "error"),
        "the least level that is logged",
    )
    socket_mode: int = _setting(
        0o600,
        kinds.mode(),
        "who may connect, in octal digits; 0660 lets the socket's group in",
        fixed="the socket was made with the old one",
        shown="0600",
    )
    heartbeat_ttl: float = _setting(
        30.0,
        kinds.number("seconds", 1, 86_400),
        "silence that ends a session whose process the daemon cannot see",
        fixed="clients were told the old one",
    )
    claim_timeout: float = _setting(
        30.0,
        kinds.number("seconds", 0, _YEAR),
        "a lease that has claimed nothing for so long is taken back; 0: never",
        fixed="leases were granted with the old one",
    )
    tunnel_timeout: float = _setting(
        0.0,
        kinds.number("seconds", 0, 86_400),
        "silence after which a lease that has reported its tunnel alive is taken back; 0: never",
    )
    admin_users: tuple[str | int, ...] = _setting(
        (),
        kinds.accounts("user"),
        "names or uids of admins, besides root and the daemon's own user",
    )
    admin_groups: tuple[str | int, ...] = _setting(
        (),
        kinds.accounts("group"),
        "names or gids of groups whose members are admins",
    )
    count_role: Literal["client", "admin"] = _setting(
        "client",
        kinds.choice("client", "admin"),
        "who may change the connection count: every client, or admins alone",
    )
    targets: Literal["off", "same_uid", "any"] = _setting(
        "same_uid",
        kinds.choice("off", "same_uid", "any"),
        "who is given the addresses that gossip says: nobody, the user who said it, or all",
    )
    dial_rate: float = _setting(
        0.0,
        kinds.number("dials per second", 0, 1_000_000),
        "dials per second of all agents of this host together; 0: as many as they like",
    )
    dial_burst: int = _setting(
        10,
        kinds.whole("dials", 1, 1_000_000),
        "dials that may begin at once before dial_rate slows them",
    )
    disconnect_threshold: float = _setting(
        0.0,
        kinds.number("seconds", 0, _YEAR),
        "once nothing has changed for so long, connections beyond the target are advised to "
        "close; 0: never",
    )
    history: int = _setting(
        10_000,
        kinds.whole("events", 0, 1_000_000),
        "the last events that are kept for `trackctl log`; 0: none",
    )
    history_age: float = _setting(
        86_400.0,
        kinds.number("seconds", 0, _YEAR),
        "how long events before those are kept, but for lost dials; 0: not at all",
    )
    http: str = _setting(
        "",
        kinds.http_address(),
        "where metrics and the status page are served: 127.0.0.1:PORT, [::1]:PORT, "
        'localhost:PORT or unix:/PATH; "" serves none',
        fixed="it is listened on from the start",
        shown="none",
    )
    max_frame: int = _limit(1 << 20, "bytes", 1 << 10, 64 << 20, "size of one message")
    max_proxies: int = _limit(10_000, "proxies", 1, 1_000_000, "proxies in one gossip message")
    max_principals: int = _limit(64, "principals", 1, 4_096, "principals in one request")
    max_name: int = _limit(255, "bytes", 16, 4_096, "length of one name")
    max_sessions: int = _limit(10_000, "sessions", 1, 1_000_000, "sessions at the same time")
    max_outstanding: int = _limit(
        1_024, "requests", 1, 65_536, "requests of one session that are remembered"
    )
    max_waiters: int = _limit(
        10_000, "requests", 1, 1_000_000, "requests that wait for a lease at the same time"
    )
    max_tracked: int = _limit(
        1_000_000, "proxies", 1, 100_000_000, "proxies that are tracked at the same time"
    )
    max_leases: int = _limit(
        200_000, "leases", 1, 100_000_000, "leases that are held at the same time"
    )
    max_reply_bytes: int = _limit(
        24 << 20, "bytes", 1 << 16, 1 << 40, "replies that are remembered for all sessions"
    )
    quota_sessions: int = _quota(2_000, "sessions", "sessions of one user")
    quota_leases: int = _quota(10_000, "leases", "leases that one user holds or waits for")
    quota_waiters: int = _quota(2_000, "requests", "requests of one user that wait for a lease")
    quota_reply_bytes: int = _quota(
        8 << 20, "bytes", "replies that are remembered for one user", low=1 << 16
    )
    quota_subscriptions: int = _quota(
        64, "subscriptions", "subscriptions of one user to the event socket"
    )
    leaders: tuple[str, ...] = _fleet(
        (),
        kinds.words(
            "NAME=HOST:PORT",
            rf"{_NAME}={_ADDRESS}",
            'is not a list of leaders, such as ["control-1=10.0.0.1:7717"]',
        ),
        "the hosts that may lead, for `trackd run`: it serves their tracker to the agents here",
    )
    leaders_dir: str = _fleet(
        "",
        kinds.directory(),
        "where the public keys of the leaders are, NAME.pub",
    )
    key_file: str = _fleet(
        "", kinds.file(), "the secret key of this host, as `trackd keys make` makes it"
    )
    on_partition: Literal["keep", "close"] = _fleet(
        "keep",
        kinds.choice("keep", "close"),
        "whether tunnels stay while this host cannot reach a leader, or close before others may "
        "have their proxies",
    )
    ring: str = _fleet(
        "",
        kinds.word("NAME", _NAME, "is not 1 to 64 letters, digits, '.', '_' and '-'"),
        "which of the cluster's independent trackers this is; each keeps a tunnel to each proxy",
    )
    listen: str = _fleet(
        "",
        kinds.word("HOST:PORT", _ADDRESS, "is not an address and a port, such as 10.0.0.1:7717"),
        "where relays reach this host while it leads",
    )
    hosts_dir: str = _fleet(
        "", kinds.directory(), "where the public keys of the hosts are that may connect, HOST.pub"
    )
    admin_hosts: tuple[str, ...] = _setting(
        (),
        kinds.words("HOST", _NAME, 'is not a list of hosts, such as ["control-1"]', most=1000),
        "the hosts whose admins are admins of the fleet",
        table="fleet",
    )
    host_ttl: float = _fleet(
        10.0,
        kinds.number("seconds", 2, 3600),
        "silence of a host that ends its sessions",
    )
    leader_ttl: int = _fleet(
        5, kinds.whole("seconds", 2, 600), "silence of a leader after which another one leads"
    )
    etcd_endpoints: tuple[str, ...] = _fleet(
        (),
        kinds.words(
            "HOST:PORT", _ADDRESS, 'is not a list of members of etcd, such as ["10.0.0.1:2379"]'
        ),
        "the members of etcd, for `trackd lead`",
    )
    etcd_ca: str = _fleet("", kinds.file(), "who signed the certificates of etcd, in PEM")
    etcd_cert: str = _fleet("", kinds.file(), "the certificate of this host for etcd, in PEM")
    etcd_key: str = _fleet("", kinds.file(), "the private key of that certificate, in PEM")
    own_place: bool = False

    @property
    def limits(self) -> Limits:
        """The limits that `hello` sends to clients."""
        from trackd_client.wire.protocol import Limits

        return Limits(**{name: getattr(self, name) for name in Limits._fields})

    @property
    def max_done_ranges(self) -> int:
        """Ranges in the `done` of a request: a gap for each outstanding one, and some spare."""
        return self.max_outstanding + _SPARE_RANGES


def _settings() -> Iterator[Setting]:
    for field in dataclasses.fields(Config):
        if field.metadata:  # own_place has none: it is not a setting
            default = f"{field.default}".removesuffix(".0") if field.default != () else ""
            default = default or "none"
            about = {**field.metadata, "default": field.metadata["default"] or default}
            yield Setting(name=field.name, **about)


#: Every setting by its name, in the order in which people read them.
SETTINGS: Final = {setting.name: setting for setting in _settings()}


def load(
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    file: Path | None,
    *,
    uid: int | None = None,
) -> Config:
    """Read the configuration of a daemon that will run.

    Args:
        flags: values by the name of their setting: text as typed, or what TOML would give; None
            for a flag that was not given.
        environ: the process's environment.
        file: the TOML file, if there is one.
        uid: the user whose default endpoint is used; None: the effective uid of this process.

    Raises:
        ConfigError: something is wrong or missing; all of it is named.
    """
    reader = _Reader()
    if file is not None:
        reader.read_file(file)
    reader.read_environment(environ)
    reader.read_flags(flags)
    if "cluster_name" not in reader.seen:
        reader.problems.append(
            "the cluster's name is missing; pass --cluster-name NAME, set TRACKD_CLUSTER_NAME, or "
            "write cluster_name in the file"
        )
    if "endpoint" not in reader.seen:
        try:
            reader.values["endpoint"] = places.daemon_endpoint(environ, uid)
            reader.values["own_place"] = True
        except places.PlaceError as error:
            reader.problems.append(str(error))
            reader.places += 1
    config = reader.config()
    if "state_dir" not in reader.seen:
        config = dataclasses.replace(
            config, state_dir=str(places.daemon_state_dir(config.endpoint))
        )
    return config


def default_file(environ: Mapping[str, str], cluster: str | None) -> Path | None:
    """Return the file that a systemd unit has for a daemon without `--config`, or None.

    `CLUSTER.toml` in `$CONFIGURATION_DIRECTORY` (set by systemd for a unit with
    ConfigurationDirectory=), escaped as an instance's name is; else `trackd.toml` there.

    Args:
        environ: the process's environment.
        cluster: the cluster's name, if flags or the environment have it.
    """
    directory = environ.get("CONFIGURATION_DIRECTORY", "").split(":")[0]
    if not directory:
        return None
    names = ["trackd.toml"]
    if cluster:
        with contextlib.suppress(places.PlaceError):  # `load` reports what is wrong with it
            names.insert(0, f"{places.escape(cluster)}.toml")
    found = (Path(directory, name) for name in names)
    return next((file for file in found if file.exists()), None)


def live_part(running: Config, wanted: Config) -> tuple[Config, list[Setting], list[Setting]]:
    """Apply a reload to the settings of a running daemon.

    Args:
        running: the present settings.
        wanted: the settings that were read again.

    Returns:
        The settings from now on, those that changed, and those that need a restart.
    """
    differ = [
        each
        for each in SETTINGS.values()
        if getattr(running, each.name) != getattr(wanted, each.name)
    ]
    changed = [setting for setting in differ if setting.live]
    values = {setting.name: getattr(wanted, setting.name) for setting in changed}
    refused = [setting for setting in differ if not setting.live]
    return dataclasses.replace(running, **values), changed, refused


def check_file(file: Path) -> Config:
    """Read a file by itself; the cluster's name and the places may be missing.

    Raises:
        ConfigError: something in the file is wrong; all of it is named.
    """
    reader = _Reader()
    reader.read_file(file)
    return reader.config()


class _Reader:
    """Collects values, of which later ones win, and all that is wrong with them.

    Attributes:
        values: fields of `Config`.
        seen: settings that were given, right or wrong.
        problems: sentences for a ConfigError.
        places: how many problems are about the socket's place.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.seen: set[str] = set()
        self.problems: list[str] = []
        self.places = 0

    def config(self) -> Config:
        if self.problems:
            about_places = self.places == len(self.problems)
            raise ConfigError(self.problems, exits.UNUSABLE if about_places else exits.USAGE)
        if self.values.get("proxy_expiry", 0) <= 0:
            self.values["proxy_expiry"] = DEFAULT_PROXY_EXPIRY
        return Config(**self.values)

    def read_file(self, file: Path) -> None:
        import tomllib  # only a daemon with a file needs it

        try:
            document = tomllib.loads(file.read_bytes().decode())
        except OSError as error:
            self.problems.append(f"{file} cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            self.problems.append(f"{file} is not UTF-8, as TOML is: see byte {error.start}")
        except tomllib.TOMLDecodeError as error:
            self.problems.append(f"{file} is not TOML: {error}")
        else:
            self._read_table(f"{file}:", "", document)

    def _read_table(self, where: str, table: str, content: dict[str, Any]) -> None:
        tables = {setting.table for setting in SETTINGS.values()}
        for key, value in content.items():
            setting = SETTINGS.get(key)
            if not table and key in tables:
                if isinstance(value, dict):
                    self._read_table(f"{where} [{key}]", key, value)
                else:
                    self.problems.append(f"{where} {key} is a table; write [{key}] above its keys")
            elif setting is not None and setting.table == table:
                self._take(f"{where} {key}", setting, setting.kind.check, value)
            elif setting is not None:
                right = (
                    f"belongs under [{setting.table}]" if setting.table else "belongs at the top"
                )
                self.seen.add(key)
                self.problems.append(f"{where} {key} {right}")
            else:
                here = [each.name for each in SETTINGS.values() if each.table == table]
                guess = kinds.near(key, here) or kinds.near(key, SETTINGS)
                hint = f"did you mean {SETTINGS[guess].key}?" if guess else f"use {', '.join(here)}"
                self.problems.append(f"{where} {key} is not a setting; {hint}")

    def read_environment(self, environ: Mapping[str, str]) -> None:
        known = {setting.variable: setting for setting in SETTINGS.values()}
        for variable, text in sorted(environ.items()):
            where = f"environment: {variable}"
            if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
                continue
            if _FOREIGN_VARIABLES.fullmatch(variable):
                continue
            if setting := known.get(variable):
                if text or setting.kind.takes_empty:
                    self._take(where, setting, setting.kind.parse, text)
            else:
                guess = kinds.near(variable, known)
                hint = f"did you mean {guess}?" if guess else "unset it, or see trackd run --help"
                self.problems.append(f"{where} is not a setting; {hint}")

    def read_flags(self, flags: Mapping[str, object]) -> None:
        for name, value in flags.items():
            if value is None:
                continue
            setting = SETTINGS[name]
            convert: Callable[[Any], object] = setting.kind.check
            if isinstance(value, str):
                convert = setting.kind.parse
            self._take(f"flag: {setting.flag}", setting, convert, value)

    def _take(
        self, where: str, setting: Setting, convert: Callable[[Any], object], value: object
    ) -> None:
        self.seen.add(setting.name)
        try:
            self.values[setting.name] = convert(value)
        except kinds.WrongValue as wrong:
            self.places += isinstance(wrong, kinds.WrongPlace)
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            if len(shown) > _MAX_SHOWN:
                shown = f"{shown[:_MAX_SHOWN]}..."
            self.problems.append(f"{where}: {shown} {wrong}")
