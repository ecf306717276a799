"""Every command and snippet of the documents runs as it stands, page by page, in a folder of its own.

A page's ```python and ```bash blocks run in order; Python blocks of one page share their names, as they would for a reader.
A comment on the line above a block says otherwise:

    <!-- ci: file NAME -->     write the block to NAME instead of running it
    <!-- ci: skip REASON -->   not run
    <!-- ci: slow REASON -->   run by `make slow` only, by itself and in the checkout

The folder shows the checkout's tests and examples, which a page may run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from preftune.data import save
from preftune.data.synthetic import arithmetic
from text_fixtures import tiny_folder

ROOT = Path(__file__).parent.parent
PAGES = (
    "docs/cli.md",
    "README.md",
    "docs/logic.md",
    "CONTRIBUTING.md",
    "docs/data.md",
    "docs/games.md",
    "docs/spo-degree.md",
    "docs/solve.md",
    "docs/arena.md",
    "docs/games-speed.md",
    "docs/egpo-simulations.md",
)  # longest first
LIMIT = 300  # seconds for one page
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TERM": "dumb"}

BLOCK = re.compile(
    r"(?:^<!-- ci: (?P<how>file|skip|slow) (?P<what>[^\n]*?) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int
    how: str = "run"
    what: str = ""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    return [
        Block(found["language"], found["text"], page[: found.start("text")].count("\n"), found["how"] or "run", found["what"] or "")
        for found in BLOCK.finditer(page)
    ]


def program(chosen: list[Block]) -> str:
    """One Python program that does what a reader does: runs blocks in order, sharing names, and says where it is."""
    lines = ["import os, subprocess, sys", "sys.path.insert(0, os.getcwd())", "names = {'__name__': '__main__'}"]
    for block in chosen:
        lines.append(f"print('--- line {block.line}', flush=True)")
        if block.how == "file":
            lines.append(f"open({block.what!r}, 'w', encoding='utf-8').write({block.text!r})")
        elif block.language == "python":
            lines.append(f"exec(compile({block.text!r}, 'line {block.line}', 'exec'), names)")
        elif block.language == "bash":
            lines.append(
                f"if subprocess.run(['bash', '-euo', 'pipefail', '-c', {block.text!r}]).returncode: sys.exit('failed: line {block.line}')"
            )
    return "\n".join(lines)


def run(chosen: list[Block], folder: Path, where: Path | None = None) -> None:
    script = folder / ".program.py"
    script.write_text(program(chosen), encoding="utf-8")
    ran = subprocess.run([sys.executable, script], cwd=where or folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT)
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"


def readers_files(folder: Path) -> None:
    """What the pages call the reader's own: ./model, pairs.jsonl and held-out.jsonl, here a tiny model and sums."""
    tiny_folder(folder / "model")
    save(arithmetic(40, kind="soft"), folder / "pairs.jsonl")
    save(arithmetic(16, seed=1), folder / "held-out.jsonl")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_snippet_of_a_page_runs(page: str, tmp_path: Path) -> None:
    for name in ("tests", "examples", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    readers_files(tmp_path)
    run([block for block in blocks((ROOT / page).read_text(encoding="utf-8")) if block.how in ("run", "file")], tmp_path)


SLOW = [(page, block) for page in PAGES for block in blocks((ROOT / page).read_text(encoding="utf-8")) if block.how == "slow"]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "block"), SLOW, ids=[f"{page} line {block.line}" for page, block in SLOW])
def test_a_long_command_runs(page: str, block: Block, tmp_path: Path) -> None:
    run([block], tmp_path, where=ROOT)


def test_a_skipped_block_says_why() -> None:
    for page in PAGES:
        for block in blocks((ROOT / page).read_text(encoding="utf-8")):
            assert block.how != "skip" or len(block.what) > 5, f"{page}, line {block.line}: skipped without a reason"


def test_a_snippet_that_fails_is_noticed(tmp_path: Path) -> None:
    page = "text\n\n```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n"
    assert [block.line for block in blocks(page)] == [3, 7]
    with pytest.raises(AssertionError, match="AssertionError"):
        run(blocks(page), tmp_path)
    with pytest.raises(AssertionError, match="line 1"):
        run(blocks("```bash\npreftune no-such-verb | cat\n```\n"), tmp_path)


def test_relative_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
