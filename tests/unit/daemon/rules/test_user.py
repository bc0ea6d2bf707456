"""What a user is called."""

from trackd.rules.user import describe_user


def test_a_user_is_named_with_the_host_unless_it_is_the_daemon_s_own() -> None:
    assert describe_user(("", 7)) == "user 7"
    assert describe_user(("h", 7)) == "user 7 of host h"
