"""What the tests share: real daemons and agents, fakes, and looks at the host."""
