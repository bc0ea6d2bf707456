"""What an empty state is."""

from __future__ import annotations

from trackd.state import changes
from trackd.state.apply import apply
from trackd.state.state import State


def test_without_settings_a_state_limits_no_dials_and_keeps_no_events() -> None:
    state = State("example.com")
    assert not state.budget.limited
    assert (state.history.most, state.history.age) == (0, 0.0)
    assert State("example.com", dial_rate=2.0).budget.level() == (1.0, 0.0), "one at a time"


def test_a_state_notes_from_its_beginning_which_groups_change() -> None:
    state = State("example.com")
    rows = (("a", "g", 1, None), ("b", "g", 1, None))
    apply(state, changes.Tracked(1, 7, 30.0, rows, (0, 1), ()), 100.0, 1e9)
    assert state.tracker.take_changed_groups() == [("g", 2, 2)]
