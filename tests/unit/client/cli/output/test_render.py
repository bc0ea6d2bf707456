"""Words, sizes and tables, as people read them in a pipe or on a terminal."""

from __future__ import annotations

import pytest

from trackd_client.cli.output.render import (
    Cell,
    Column,
    _kept,
    draw_table,
    format_count,
    format_duration,
    format_names,
    format_rtt,
    format_size,
    format_value,
    natural_key,
)
from trackd_client.cli.text import escape


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59, "59s"), (200, "3m 20s"), (18_120, "5h 2m"), (273_600, "3d 4h")],
)
def test_a_duration_reads_as_people_say_it(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


def test_numbers_and_lists_read_as_people_say_them() -> None:
    assert [format_count(1, "lease"), format_count(2, "proxy", "proxies")] == [
        "1 lease",
        "2 proxies",
    ]
    assert [format_size(12), format_size(2_500), format_size(3_000_000)] == [
        "12 B",
        "2.5 kB",
        "3.0 MB",
    ]
    assert format_names(["a", "b", "c"], total=7, most=2) == "a, b and 5 more"
    assert format_value(None) == "-"
    assert format_value("") == '""'


def test_no_terminal_obeys_what_a_peer_is_called() -> None:
    assert escape("\x1b[2Jp1\n\r\x9b31m") == "\\x1b[2Jp1\\n\\r\\x9b31m"
    assert escape("\u202egpj.exe") == "\\u202egpj.exe"
    assert escape("größe 日本") == "größe 日本"


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    found = sorted(["p10", "p2", "10", "q", "p"], key=natural_key)
    assert found == ["10", "p", "p2", "p10", "q"]


def table(most: int | None) -> list[str]:
    columns = [Column("name", shrinks=True), Column("number", right=True)]
    drawn = draw_table(
        columns, [["a-very-long-name-indeed", "1"], [Cell("日本", "red"), "22"]], most
    )
    return ["".join(cell.text for cell in line).rstrip() for line in drawn]


def test_a_table_is_whole_in_a_pipe_and_cut_on_a_terminal() -> None:
    assert table(None) == [
        "name                     number",
        "a-very-long-name-indeed       1",
        "日本                         22",
    ]
    assert table(20) == [
        "name          number",
        "a-very-long…       1",
        "日本              22",
    ]
    assert all(len(line) > 10 for line in table(10)), "a column keeps a width that can be read"


def test_a_narrow_terminal_does_without_what_is_least_wanted() -> None:
    columns = [Column("name"), Column("spare", spare=1), Column("sparest", spare=2)]
    rows = [["x" * 20, "y" * 10, "z" * 10]]
    assert [_kept(columns, rows, most) for most in (44, 43, 31, 5)] == [[0, 1, 2], [0, 1], [0], [0]]


@pytest.mark.parametrize(
    ("names", "width", "expected"),
    [
        (
            ["proxy-0001.eu.example.com", "proxy-0002.eu.example.com"],
            16,
            ["proxy-0001…", "proxy-0002…"],
        ),
        (["proxy-0001.eu.example.com", "proxy-0002.eu.example.com"], 9, ["…xy-0001…", "…xy-0002…"]),
        (["a-long-prefix-of-all-1", "a-long-prefix-of-all-2"], 9, ["…of-all-1", "…of-all-2"]),
        (["7.proxy.example", "8.proxy.example"], 9, ["7…", "8…"]),
        (["same-long-name-of-two", "same-long-name-of-two"], 9, ["…e-of-two", "…e-of-two"]),
        (["alone-and-very-long-name", "short"], 9, ["alone-an…", "short"]),
    ],
)
def test_a_cut_name_keeps_what_tells_it_from_the_others(
    names: list[str], width: int, expected: list[str]
) -> None:
    drawn = list(draw_table([Column("n", shrinks=True)], [[name] for name in names], width))
    assert [line[0].text.strip() for line in drawn[1:]] == expected
    assert all(len(line[0].text.rstrip()) <= width for line in drawn)


@pytest.mark.parametrize("right", [True, False])
def test_a_line_as_wide_as_the_terminal_has_no_blanks_behind_it(*, right: bool) -> None:
    columns = [Column("name"), Column("for", right=right)]
    drawn = draw_table(columns, [["a-name", Cell("2m 3s", "red")], ["b", Cell("-", "red")]], 13)
    lines = ["".join(cell.text for cell in line) for line in drawn]
    assert max(map(len, lines)) == 13
    assert lines == [line.rstrip() for line in lines], "colours would keep them"


def test_a_round_trip_time_has_three_digits() -> None:
    assert [format_rtt(each) for each in (0.0, 0.0000123, 0.25, 1.0, 12.345, 60.0)] == [
        *("0 ms", "0.0123 ms", "250 ms"),
        *("1 s", "12.3 s", "60 s"),
    ]
