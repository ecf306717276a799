"""`python -m preftune.conformance`"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from .page import page


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m preftune.conformance", description="Write the table of self-play methods on exact games."
    )
    parser.add_argument("--out", type=Path, required=True, help="the Markdown file to write")
    out = parser.parse_args(arguments).out
    out.write_text(page(shlex.join(["python", "-m", "preftune.conformance", "--out", str(out)])), encoding="utf-8")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
