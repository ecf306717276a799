"""Rules that can be verified: the right final answer, a pattern, tests that pass, a length. Deterministic, and never kept on disk."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from ..client import each
from ..data.files import LINE, open_table
from ..policies.text.tokens import Said
from ..types import PreftuneError
from .asking import Answer, Grading, Question
from .rubric import digest

SURE = 10.0  #    slope of what is right or wrong: right beats wrong with probability 1 - 5e-5
DIGITS = 100  #   characters of a number; longer ones are compared as texts
OUTPUT = 1 << 20  # bytes that a tested program may write


@dataclass
class Rule:
    """Grades every response by a function of prompt and response; NaN is no answer."""

    identity: str
    grade: Callable[[Said, str], float]
    workers: int = 1
    kept: bool = False

    def answer(self, questions: Sequence[Question]) -> Iterator[tuple[int, Answer]]:
        """The grade of each response."""

        def ask(question: Question, stop: threading.Event) -> float:
            return self.grade(question.prompt, question.responses[0])

        graded = (
            each(ask, questions, self.workers) if self.workers > 1 else enumerate(self.grade(q.prompt, q.responses[0]) for q in questions)
        )
        for at, value in graded:
            if not math.isnan(value):
                yield at, (value,)


# --- what the data expect ---------------------------------------------------------------------------------------------


def expected(data: str, column: str) -> dict[str, Any]:
    """prompt -> what its row has in `column`, from a JSONL, JSON, CSV or Parquet file. A prompt is known by what its user says last."""
    table = open_table(data, None, LINE, {})
    found: dict[str, Any] = {}
    for i, row in enumerate(table.rows(range(len(table)))):
        if row is None:
            continue
        if row.get("prompt") is None or row.get(column) is None:
            has = ", ".join(name for name, value in row.items() if value is not None)
            raise PreftuneError(f"{data}, row {i + 1}: found {has or 'nothing'}, needed prompt and {column}; complete or remove the row")
        prompt, value = row["prompt"], row[column]
        said = last_said(prompt if isinstance(prompt, str) else tuple((m["role"], m["content"]) for m in prompt))
        if found.setdefault(said, value) != value:
            raise PreftuneError(f"{data}, row {i + 1}: its prompt came before with another {column}, needed one alone; remove a row")
    return found


def last_said(prompt: Said) -> str:
    """A prompt's last message, without white space around it: what templates and system messages leave as it was."""
    return (prompt if isinstance(prompt, str) else prompt[-1][1]).strip()


# --- the final answer -------------------------------------------------------------------------------------------------

MARKS = re.compile(r"####|(?i:answer)\s*(?:is\b\s*:?|:)")


def final_answer(response: str, marker: str | None = None) -> str | None:
    """What stands in the last \\boxed{}, otherwise behind the last mark to the end of the sentence or line; None without either.

    Marks are "####", "answer is" and "answer:", or the given marker alone.
    """
    if marker is None:
        boxed = last_boxed(response)
        if boxed is not None:
            return boxed
        marks = list(MARKS.finditer(response))
        rest = response[marks[-1].end() :] if marks else ""
    else:
        rest = response.rpartition(marker)[2] if marker in response else ""
    said = re.split(r"\n|\.\s", rest.strip(), maxsplit=1)[0].strip()
    return said or None


def last_boxed(text: str) -> str | None:
    """What stands between the braces of the last \\boxed{...} that is closed."""
    for start in reversed([found.end() for found in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for at in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            if depth == 0:
                return text[start:at].strip()
    return None


def plain(text: str) -> str:
    """A final answer without what does not change it: mathematics' dollars, \\text{}, white space, case, a full stop at the end."""
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|[!,;()\s])|\$|\*\*", "", text)
    return " ".join(text.split()).strip().rstrip(".").strip().casefold()


NUMBER = re.compile(r"[=≈~]?\s*[€£]?\s*([+-]?)\s*(\d[\d,]*(?:\.\d+)?|\.\d+)(e[+-]?\d{1,3})?\s*(?:/\s*(\d+))?(\s*%|\s+[^\W\d_]{2,}[^\d]*)?")


def number(text: str) -> tuple[Fraction, str] | None:
    """(number, unit) of a plain final answer: 1,234.5, -3e4, 3/4, \\frac{3}{4}, 12%, 7 apples; None where it is no number."""
    text = re.sub(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}", r"\1/\2", text).replace("\\%", "%").replace("−", "-")
    found = NUMBER.fullmatch(text) if len(text) <= DIGITS else None
    if found is None:
        return None
    sign, digits, power, below, unit = found.groups()
    if "," in digits and not re.fullmatch(r"\d{1,3}(,\d{3})+(\.\d+)?", digits) or (below and not int(below)):
        return None
    value = Fraction(digits.replace(",", "") + (power or "")) / int(below or 1)
    return -value if sign == "-" else value, (unit or "").strip()


def same(found: str, wanted: str, tolerance: float) -> bool:
    """Whether two final answers say the same: as numbers up to a relative tolerance, with one unit or in one of them none, otherwise as
    texts."""
    a, b = number(plain(found)), number(plain(wanted))
    if a is None or b is None:
        return plain(found) == plain(wanted)
    return abs(a[0] - b[0]) <= Fraction(tolerance) * abs(b[0]) and (a[1] == b[1] or not (a[1] and b[1]))


def answer(data: str, column: str = "answer", marker: str | None = None, tolerance: float = 1e-6, slope: float = SURE) -> Grading:
    """1 for a response whose final answer is the expected one, otherwise 0; no answer to prompts that the data do not have.

    data       a file with the columns prompt and `column`
    marker     what the final answer stands behind; by default \\boxed{}, "####", "answer is" or "answer:". Without it a response is wrong
    tolerance  of numbers, relative to the expected one
    """
    if not 0 <= tolerance < 1:
        raise PreftuneError(f"tolerance is {tolerance}, needed 0 <= tolerance < 1, relative to the expected number; 1e-6 is usual")
    wanted = {prompt: str(value) for prompt, value in expected(data, column).items()}

    def grade(prompt: Said, response: str) -> float:
        right = wanted.get(last_said(prompt))
        if right is None:
            return math.nan
        said = final_answer(response, marker)
        # a reference such as GSM8K's is a whole solution with its final answer behind the mark
        return float(said is not None and same(said, final_answer(right, marker) or right, tolerance))

    return Grading(Rule(f"final answers {digest([wanted, marker, tolerance])}", grade), slope)


# --- patterns and lengths ---------------------------------------------------------------------------------------------


def regex(pattern: str | None = None, file: str | None = None, slope: float = SURE) -> Grading:
    """The share of patterns that are found in the response: one, or those of a file, one a line. Python's `re`; "." stops at line ends.

    Not a guard against patterns that take for ever: a pattern is the user's own.
    """
    if (pattern is None) == (file is None):
        raise PreftuneError("regex takes pattern or file, needed exactly one of them; for instance regex,pattern=^Yes")
    if file is not None and not Path(file).is_file():
        raise PreftuneError(f"{file} is no file, needed one with a pattern a line; check the path")
    lines = [pattern or ""] if file is None else [line for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise PreftuneError(f"{file} has no patterns, needed one a line; write some")
    try:
        patterns = [re.compile(line) for line in lines]
    except re.error as error:
        raise PreftuneError(f"{error.pattern!r} is no pattern ({error}), needed a regular expression; correct it") from None

    def grade(prompt: Said, response: str) -> float:
        return sum(one.search(response) is not None for one in patterns) / len(patterns)

    return Grading(Rule(f"patterns {digest(lines)}", grade), slope)


def length(
    target: float | None = None, unit: Literal["characters", "words"] = "characters", width: float = 100.0, slope: float = 1.0
) -> Grading:
    """-|length - target| / width, or length / width where there is no target: longer is better. A judge whose taste is known."""
    if not width > 0 or (target is not None and not (math.isfinite(target) and target >= 0)):
        raise PreftuneError(f"target is {target} and width {width}, needed target >= 0 and width > 0; for instance length,target=200")

    def grade(prompt: Said, response: str) -> float:
        size = len(response) if unit == "characters" else len(response.split())
        return (size if target is None else -abs(size - target)) / width

    return Grading(Rule(f"length {digest([target, unit, width])}", grade), slope)


# --- tests that run ---------------------------------------------------------------------------------------------------

HARNESS = """
import json, os, resource, sys
task = json.loads(sys.stdin.readline())
for name, value in task["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
told, mark = os.fdopen(os.dup(1), "w"), task["mark"]
space, passed = {"__name__": "__main__"}, 0
exec(compile(task["code"], "response", "exec"), space)
for test in task["tests"]:
    try:
        exec(compile(test, "test", "exec"), dict(space))
        passed += 1
    except BaseException:
        pass
told.write(f"\\n{mark} {passed}\\n")
told.flush()
os._exit(0)
"""
FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


def code_of(response: str) -> str:
    """The last block of code of a response, or all of it where none is marked."""
    blocks = FENCED.findall(response)
    return str(blocks[-1]) if blocks else response


def passed(code: str, checks: Sequence[str], seconds: float, memory_mb: int) -> int:
    """How many of the checks pass after the code, each on its own; 0 where the code fails, ends itself or takes too long.

    Runs in a process of its own, in an empty folder, without our environment, within limits of time, memory and file size. That is
    against mistakes and not against malice: the program has this user's rights and this machine's network.
    """
    mark = secrets.token_hex(16)  # by which we know that the checks were reached: a program may end itself and look well
    limits = {"RLIMIT_CPU": math.ceil(seconds) + 1, "RLIMIT_AS": memory_mb << 20, "RLIMIT_FSIZE": OUTPUT, "RLIMIT_CORE": 0}
    task = json.dumps({"code": code, "tests": list(checks), "mark": mark, "limits": limits}) + "\n"
    with tempfile.TemporaryDirectory(prefix="preftune-", ignore_cleanup_errors=True) as folder, open(Path(folder) / ".out", "w+b") as out:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", HARNESS],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.environ.get("PATH", ""), "HOME": folder},
            start_new_session=True,
        )
        try:
            process.communicate(task.encode("utf-8", "replace"), timeout=seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            pass
        finally:
            end(process)
        out.seek(0)
        told = out.read(2 * OUTPUT).decode("utf-8", "replace")
    found = re.search(rf"^{mark} (\d+)$", told, re.MULTILINE)
    return int(found[1]) if found else 0


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


def tests(
    data: str,
    allow_code: bool = False,
    column: str = "tests",
    seconds: float = 5.0,
    memory_mb: int = 512,
    concurrency: int = 2,
    slope: float = SURE,
) -> Grading:
    """The share of a prompt's tests that the response's Python code passes; no answer to prompts that the data do not have.

    data        a file with the columns prompt and `column`: one program or a list of them, such as "assert f(2) == 4"
    allow_code  must be said: the responses' code runs on this machine, as this user
    seconds     for all tests of a response; memory_mb: of its process; concurrency: processes at once
    """
    if not allow_code:
        raise PreftuneError(
            "the judge tests runs code that a model wrote, needed your word that it may; give allow_code=true, in a container"
        )
    if sys.platform != "linux":
        raise PreftuneError(f"the judge tests was asked for on {sys.platform}, needed limits of time and memory as Linux has; run it there")
    if not (math.isfinite(seconds) and seconds > 0) or memory_mb < 64 or concurrency < 1:
        raise PreftuneError(
            f"seconds is {seconds}, memory_mb {memory_mb} and concurrency {concurrency}, needed seconds > 0, memory_mb >= 64 and "
            "concurrency >= 1; correct that"
        )
    wanted = {prompt: checks_of(value, data) for prompt, value in expected(data, column).items()}

    def grade(prompt: Said, response: str) -> float:
        checks = wanted.get(last_said(prompt))
        return math.nan if checks is None else passed(code_of(response), checks, seconds, memory_mb) / len(checks)

    return Grading(Rule(f"tests {digest([wanted, seconds, memory_mb])}", grade, workers=concurrency), slope)


def checks_of(value: Any, data: str) -> list[str]:
    """One program, or several."""
    checks = [value] if isinstance(value, str) else value
    if not isinstance(checks, list) or not checks or not all(isinstance(check, str) for check in checks):
        raise PreftuneError(f"{data}: found {str(value)[:60]} as tests, needed Python text or a list of such; correct the row")
    return checks
