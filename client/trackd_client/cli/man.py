"""Writes trackctl(1) from the commands' own help: `python -m trackd_client.cli.man DIRECTORY`.

Needs the command's packages and nothing else. The page is plain man(7), which every formatter of
manual pages reads.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from trackd_client import __version__
from trackd_client.cli import app
from trackd_client.cli.common import SECTIONS

NAME = "trackctl"


def make_page(group: click.Group) -> str:
    """Return the manual page of a command with subcommands."""
    context = click.Context(group, info_name=NAME)
    summary = _first_sentence(group).rstrip(".")
    lines = [
        f'.TH {NAME.upper()} 1 "" "trackd {__version__}" "User Commands"',
        ".SH NAME",
        f"{NAME} \\- {escape(summary[0].lower() + summary[1:])}",
        ".SH SYNOPSIS",
        f".B {NAME}",
        "[\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
        ".SH OPTIONS",
        *_options(context),
        ".SH COMMANDS",
    ]
    for title, names in SECTIONS.items():
        found = [(name, group.commands[name]) for name in names if name in group.commands]
        if found:
            lines += [f".SS {escape(title)}"]
        for name, command in found:
            lines += _command(name, command, context)
    epilog = _paragraphs(group.epilog)
    lines += [".SH NOTES", *epilog, ".SH SEE ALSO"]
    lines += [".BR systemctl (1),", ".BR journalctl (1)"]
    return "\n".join(lines) + "\n"


def _command(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join(command.collect_usage_pieces(context))
    yield ".PP"
    yield f"\\fB{NAME} {escape(name)}\\fR {escape(usage)}"
    yield ".RS 4"
    yield from _paragraphs(inspect.cleandoc(command.help or ""))
    yield from _options(context)
    yield from _paragraphs(command.epilog)
    yield ".RE"


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.params:  # the synopsis names the arguments
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            yield ".TP"
            yield f"\\fB{escape(record[0])}\\fR"
            yield escape(record[1]) or "\\&"


def _paragraphs(text: str | None) -> Iterator[str]:
    """Return the lines of a help text; what follows a mark of click's is left as it is."""
    for paragraph in re.split(r"\n\s*\n", text or ""):
        verbatim, marked, rest = paragraph.partition("\b\n")
        lines = (rest if marked else verbatim).rstrip().splitlines()
        if not lines:
            continue
        yield ".PP"
        if marked:
            yield ".nf"
            yield from map(escape, lines)
            yield ".fi"
        else:
            yield from (escape(line.strip()) for line in lines)


def _first_sentence(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def escape(text: str) -> str:
    """Return text that no formatter takes for anything else."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text


def main(directory: str) -> None:
    """Write the page into a directory, which is made."""
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{NAME}.1").write_text(make_page(app.build()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "build/man")
