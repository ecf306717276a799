"""preftune from-trl: a configuration of TRL as the command that does the same here, and what its names do not mean."""

from __future__ import annotations

import json as jsonlib
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..types import PreftuneError
from .options import Json, loading
from .output import print_json, print_list


def from_trl(
    config: Annotated[Path, typer.Argument(help="JSON or YAML of a DPOConfig, KTOConfig, CPOConfig, ORPOConfig, TPOConfig or BCOConfig.")],
    trainer: Annotated[str | None, typer.Option(help="dpo, kto, cpo, orpo, tpo or bco; told by the keys if left out.")] = None,
    trl_version: Annotated[str | None, typer.Option(help="The version it was written for, such as 0.24 or 1.16.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="On how many devices TRL ran: each had a batch of its own.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the training data, to turn steps of warm-up into a share.")] = None,
    json: Json = False,
) -> None:
    """Print the preftune command that a configuration of TRL asks for, and warn where a name means something else."""
    from ..api import prepare
    from .trl.run import translate

    request = translate(read_config(config), trainer=trainer, version=trl_version, devices=devices, rows=rows)
    prepare(request.method, request.settings)  # what is printed has to run
    loading({name: str(value) for name, value in request.load.items()})
    facts: dict[str, Any] = {"command": shlex.join(request.arguments), "arguments": request.arguments, **asdict(request)}
    if json:
        print_json(facts)
        return
    print(lines(request.arguments) + "\n")
    print_list("warning", request.warnings)
    print_list("unknown", [f"{name} is no key of TRL that is known here: it is not in the command" for name in request.unknown])
    print_list("left out", [f"{name}: {why}" for name, why in request.left.items()])
    print_list("note", request.notes)
    if request.without_effect:
        print_list("note", [f"not in the command, since they do not change what is learned: {', '.join(request.without_effect)}"])


def lines(arguments: list[str]) -> str:
    """The command, an option a line, as a shell takes it."""
    words = [shlex.quote(word) for word in arguments]
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    return " \\\n    ".join([" ".join(words[:first]), *(" ".join(words[i : i + 2]) for i in range(first, len(words), 2))])


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a file: JSON as TRL and transformers save it, or YAML as its command line takes it."""
    if not path.is_file():
        raise PreftuneError(f"there is no file {path}, needed a configuration of TRL; json.dump(training_args.to_dict(), file) writes one")
    if path.suffix in (".bin", ".pt", ".pkl"):
        raise PreftuneError(
            f"{path} is pickled and may run code when it is read, needed JSON or YAML; json.dump(training_args.to_dict(), file)"
        )
    written = path.read_text(encoding="utf-8", errors="replace")
    try:
        found = jsonlib.loads(written)
    except ValueError:
        import yaml

        try:
            found = yaml.safe_load(written)
        except yaml.YAMLError as error:
            raise PreftuneError(
                f"{path} is neither JSON nor YAML: {' '.join(str(error).split())}, needed one of them; correct that line"
            ) from error
    if not isinstance(found, dict) or not found:
        raise PreftuneError(f"{path} holds {type(found).__name__}, needed names and values such as beta: 0.1; see docs/cli.md")
    return {str(name): value for name, value in found.items()}
