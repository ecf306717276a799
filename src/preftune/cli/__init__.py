"""The command `preftune`: one file per verb. A verb imports what it needs when it runs, so help and completion are instant."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from .. import __version__, processes
from ..types import PreftuneError
from .output import complain, parts, print_json

VERBS = {
    "quickstart": "preftune.cli.quickstart:quickstart",
    "train": "preftune.cli.train:train",
    "evaluate": "preftune.cli.evaluate:evaluate",
    "generate": "preftune.cli.generate:generate",
    "arena": "preftune.cli.arena:arena",
    "data": "preftune.cli.data:data",
    "play": "preftune.cli.play:play",
    "solve": "preftune.cli.solve:solve",
    "judge": "preftune.cli.judge:judge",
    "logic": "preftune.cli.logic:logic",
    "show": "preftune.cli.show:show",
    "from-trl": "preftune.cli.from_trl:from_trl",
    "copy": "preftune.cli.copy:copy",
    "merge": "preftune.cli.merge:merge",
    "report": "preftune.cli.report:report",
    "doctor": "preftune.cli.doctor:doctor",
}

SHARED = ("train", "evaluate", "generate", "--help", "-h", "--version")  # what several processes may be started for

BAD_INPUT = 3  # exit code; typer's own are 2 for wrong usage and 130 for Ctrl-C, see docs/cli.md


def _version(asked: bool) -> None:
    if asked:
        print(f"preftune {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Optimise generative models from preferences.

    Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 bad input, 130 interrupted.
    """


def application(verb: str | None) -> typer.Typer:
    """The whole command line, or, where the verb is known, no more than that verb."""
    app = typer.Typer(
        name="preftune", no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.callback()(_root)
    for name in [verb] if verb in VERBS else VERBS:
        module, _, function = VERBS[name].partition(":")
        found = getattr(importlib.import_module(module), function)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def _meet(verb: str) -> None:
    """Several processes begin together, or not at all."""
    if processes.size() > 1 and verb not in SHARED:
        raise PreftuneError(
            f"preftune {verb} was started in {processes.size()} processes, needed one: only {', '.join(SHARED[:3])} share their work; "
            "start it without a launcher"
        )
    processes.start()


def main(arguments: list[str] | None = None) -> Any:
    """Run one command; ends the process with a documented exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # threads that wait spin by default, and steal the core from each other wherever something else runs too (measured: 4 times
    # slower steps of a small model on two busy cores); read when torch is first imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not processes.first():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        _meet(arguments[0] if arguments else "")
        application(arguments[0] if arguments else None)(args=arguments, prog_name="preftune")
    except PreftuneError as error:  # the one place where a mistake in the input turns into words
        told = str(error)
        processes.say_once(lambda: _refuse(told, "--json" in arguments))
        sys.exit(BAD_INPUT)
    except Exception:
        if processes.size() == 1:
            raise
        processes.say_once(traceback.print_exc)
        sys.exit(1)
    finally:
        processes.stop()


def _refuse(message: str, json: bool) -> None:
    """Say what is wrong with the input."""
    if not processes.first():
        sys.stdout = sys.__stdout__  # this process failed first, and speaks after all
    if json:
        print_json({"error": message, **parts(message), "exit": BAD_INPUT})
    else:
        complain(message)
