"""Names in a narrow column: whatever they are, no two look the same, and all fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd_client.cli.output.render import Column, draw_table
from trackd_client.cli.output.shorten import measure, shorten

PARTS = st.sampled_from(
    [
        *("node-", "edge-", "proxy-", "0001", "0002", "1", "11", "111", "a", "-", " "),
        *(".alpha.example.internal.company", ".beta.other.org", ".example.com"),
        *("日本", "größe", "…", "~1", "~2"),
    ]
)
NAMES = st.one_of(
    st.lists(PARTS, min_size=1, max_size=8).map("".join),
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]), max_size=40),
)


@given(names=st.lists(NAMES, min_size=1, max_size=30), width=st.integers(8, 40))
def test_no_two_names_look_the_same(names: list[str], width: int) -> None:
    looks = shorten(names, width)
    assert looks.keys() == set(names)
    assert len({look.strip() for look in looks.values()}) == len(looks)
    assert all(measure(look) <= width for look in looks.values())


@given(
    names=st.lists(NAMES, min_size=1, max_size=30, unique_by=str.strip),
    groups=st.lists(NAMES, min_size=1, max_size=3),
    most=st.integers(30, 100),
)
def test_no_two_rows_of_a_table_show_the_same_name(
    names: list[str], groups: list[str], most: int
) -> None:
    columns = [Column("n", shrinks=True), Column("group", shrinks=True), Column("x", right=True)]
    rows = [[name, groups[i % len(groups)], "1"] for i, name in enumerate(names)]
    _, *lines = draw_table(columns, rows, most)
    assert len({line[0].text.strip() for line in lines}) == len(names)
    assert {sum(measure(cell.text) for cell in line) for line in lines} <= {most + 2} | {
        sum(measure(cell.text) for cell in lines[0])
    }


def kinds(count: int) -> list[str]:
    return [
        name
        for i in range(1, count)
        for name in (
            f"node-{i:04}.alpha.example.internal.company",
            f"edge-{i:04}.beta.other.org",
            f"alpha.example.internal.company.node-{i:04}",
        )
    ]


@pytest.mark.parametrize("width", [8, 12, 16, 24])
def test_names_of_several_kinds_keep_their_numbers(width: int) -> None:
    looks = shorten(kinds(17), width)
    assert len(set(looks.values())) == 3 * 16
    for name, look in looks.items():
        number = name.partition("-")[2][:4]
        assert look.partition("~")[0].count(number[-2:]), (name, look)
