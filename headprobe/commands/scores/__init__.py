"""`headprobe scores`: look at score files, check, convert, compare and share them. A line registers a command."""

from __future__ import annotations

import typer

from headprobe.commands.app import App
from headprobe.commands.scores.compare import compare_command
from headprobe.commands.scores.convert import convert_command
from headprobe.commands.scores.merge import merge_command
from headprobe.commands.scores.pull import pull_command
from headprobe.commands.scores.push import push_command
from headprobe.commands.scores.show import show_command
from headprobe.commands.scores.stability import stability_command
from headprobe.commands.scores.validate import validate_command

scores_app = App(
    help="Look at score files, native or foreign: show, check, convert, compare and share them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@scores_app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    """Look at score files, native or foreign: show, check, convert, compare and share them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


scores_app.command("show")(show_command)
scores_app.command("validate")(validate_command)
scores_app.command("convert")(convert_command)
scores_app.command("push")(push_command)
scores_app.command("pull")(pull_command)
scores_app.command("compare")(compare_command)
scores_app.command("stability")(stability_command)
scores_app.command("merge")(merge_command)
