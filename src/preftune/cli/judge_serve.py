"""preftune judge serve: one judge for several trainers, on this machine or on others."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def serve(
    judge: Annotated[str, typer.Argument(help="Name with options, package.module:function, folder of a trained judge, or a YAML file.")],
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's own need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8600,
    token_env: Annotated[str, typer.Option(help="The environment variable that holds the token.")] = "PREFTUNE_JUDGE_TOKEN",
) -> None:
    """Answer questions to a judge over HTTP until interrupted; --judge http://HOST:PORT asks it."""
    from ..api import resolve_judge
    from ..judges.service import service

    with service(resolve_judge(judge), judge, host, port, token_env) as server:
        place = f"[{host}]" if ":" in host else host
        print(f"{judge} answers at http://{place}:{server.server_address[1]}", flush=True)
        print(f"a token is {'asked for' if server.token else 'not asked for'}; Ctrl-C ends the service", file=sys.stderr, flush=True)
        server.serve_forever()
