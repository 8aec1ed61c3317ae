"""The page of the command line, from the declarations that `--help` prints."""

from typing import Any

import typer

from sfumato.cli import app

HEAD = """# Command line

Every command and its options, as `sfumato COMMAND --help` prints them. A mistake ends with one sentence and exit
code 2; Ctrl-C ends with 130. Settings of a training (`train.steps=2000`) follow its command;
[configuration](../configuration.md) lists them.

"""


def page() -> str:
    """Markdown with a section for each command, in the order of `sfumato --help`."""
    root: Any = typer.main.get_command(app)
    sections = "\n".join(_section(f"sfumato {name}", command) for name, command in root.commands.items())
    return f'{HEAD}<div class="generated" markdown>\n\n{sections}\n</div>\n'


def _section(title: str, command: Any) -> str:
    if getattr(command, "commands", None):
        return "\n".join(_section(f"{title} {name}", below) for name, below in command.commands.items())
    context = command.make_context(title, [], resilient_parsing=True)
    lines = [f"## {title}", "", _paragraphs(command.help or ""), ""]
    arguments, options = [], []
    for parameter in command.params:
        record = None if getattr(parameter, "hidden", False) else parameter.get_help_record(context)
        if record is not None:
            (arguments if parameter.param_type_name == "argument" else options).append(record)
    usage = " ".join([title, *(name.split(" <")[0] for name, _ in arguments), "[OPTIONS]" if options else ""]).rstrip()
    lines += ["```text", usage, "```", ""]
    for name, records in (("argument", arguments), ("option", options)):
        if records:
            lines += [
                f"| {name} | |",
                "|---|---|",
                *(f"| `{_cell(flag)}` | {_cell(text)} |" for flag, text in records),
                "",
            ]
    return "\n".join(lines)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("*", "\\*")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
