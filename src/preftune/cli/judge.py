"""preftune judge: judges that are trained, tested and served. One file per command."""

from __future__ import annotations

import typer

from .judge_serve import serve
from .judge_test import test
from .judge_train import train

judge = typer.Typer(
    name="judge",
    no_args_is_help=True,
    help="Train, test and serve judges.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
judge.callback()(lambda: None)  # a command of its own stays a command, also while it is the only one
judge.command("train")(train)
judge.command("test")(test)
judge.command("serve")(serve)
