"""`headprobe eval`: measure what a compressed cache still answers. A line registers a command."""

from __future__ import annotations

import typer

from headprobe.commands.app import App
from headprobe.commands.evaluate.needles import needles_command

eval_app = App(
    help="Measure what a model still answers on a compressed cache.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@eval_app.callback(invoke_without_command=True)
def _help(context: typer.Context) -> None:
    """Measure what a model still answers on a compressed cache."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


eval_app.command("needles")(needles_command)
