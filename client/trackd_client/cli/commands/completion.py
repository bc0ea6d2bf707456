"""`trackctl completion`: the script that has a shell complete `trackctl`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from trackd_client.cli import common

_EPILOG = """\b
Examples:
  eval "$(trackctl completion bash)"                     # in ~/.bashrc
  eval "$(trackctl completion zsh)"                      # in ~/.zshrc
  trackctl completion fish > ~/.config/fish/completions/trackctl.fish
"""
#: The variable by which the script asks for completions; click derives it from the name.
VARIABLE = "_TRACKCTL_COMPLETE"


@click.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, "the choice names those that click has"
    click.echo(kind(common.trackctl, {}, "trackctl", VARIABLE).source())
