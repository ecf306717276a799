"""Who may import whom: the arrows of docs/design.md, read from the source; and which imports wait until they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import preftune

PACKAGE = Path(preftune.__file__).parent

# From the ground up: a layer may import the layers above it in this list. Within a line, what stands on the two sides of
# "|" does not know each other; what stands on one side does.
LAYERS = (
    "types numerics processes client",
    "logic ranking",
    "objectives | exact",
    "policies",
    "data",
    "judges",
    "collect | reference | update",
    "methods | learner optimisers minimiser checkpoint log probe provenance diagnostics",
    "evaluation standings judge_quality report",
    "training",
    "api contest playing solving judging conformance grid registry cli annotate __init__ __main__",
)
PLACE = {name: (level, side) for level, line in enumerate(LAYERS) for side, names in enumerate(line.split("|")) for name in names.split()}

LATE = ("transformers", "diffusers", "datasets", "peft", "matplotlib", "sklearn", "pandas", "gguf")  # only inside functions
FROM_POLICIES_UP = ("transformers", "diffusers", "datasets", "peft")


@dataclass(frozen=True)
class Import:
    module: str  # absolute, "preftune.objectives.pairwise" or "torch.nn"
    line: int
    late: bool  #  inside a function or for type checkers only


def imports(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import of a module, relative ones made absolute."""

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = module.split(".")[: len(module.split(".")) - child.level + is_package] if child.level else []
                base = ".".join([*above, *([child.module] if child.module else [])])
                yield from (Import(f"{base}.{alias.name}", child.lineno, late) for alias in child.names)
            checking = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            yield from visit(child, late or checking or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from visit(ast.parse(source), False)


def part(module: str) -> str:
    """preftune.policies.text.model -> policies; preftune itself (its version) -> types."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in PLACE else "types"


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the arrows, in words."""
    own = "__init__" if module == "preftune" else module.split(".")[1]
    if own not in PLACE:
        return [f"{module}: {own} stands in no layer of tests/test_layers.py; add it there and in docs/design.md"]
    found = []
    for one in imports(source, module, is_package):
        root = one.module.split(".")[0]
        where = f"{module}, line {one.line}: imports {one.module}"
        if root == "preftune":
            other = part(one.module)
            (level, side), (level_other, side_other) = PLACE[own], PLACE[other]
            if other != own and (level_other > level or (level_other == level and side_other != side)):
                found.append(f"{where}, but {own} may not know {other}")
        if root in LATE and not one.late:
            found.append(f"{where} when it is loaded; import it inside the function that uses it")
        if root in FROM_POLICIES_UP and PLACE[own][0] < PLACE["policies"][0]:
            found.append(f"{where}, which belongs to the policies and what stands above them")
    return found


def sources() -> list[tuple[str, Path]]:
    return [
        (".".join(["preftune", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"), path)
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def test_nothing_imports_upward() -> None:
    found = [
        line
        for module, path in sources()
        for line in violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("preftune.objectives.planted", "from ..learner import GradientLearner", "objectives may not know learner"),
        ("preftune.objectives.planted", "from .. import learner", "objectives may not know learner"),
        ("preftune.objectives.planted", "def f():\n    import preftune.methods.dpo", "objectives may not know methods"),
        ("preftune.exact.planted", "from ..objectives import pairwise", "exact may not know objectives"),
        ("preftune.methods.planted", "from preftune.training import train", "methods may not know training"),
        ("preftune.learner", "from .methods import METHODS", "learner may not know methods"),
        ("preftune.policies.text.planted", "from ...judges import exact", "policies may not know judges"),
        ("preftune.policies.text.planted", "import transformers", "import it inside the function"),
        ("preftune.exact.planted", "def f():\n    from transformers import AutoModel", "belongs to the policies"),
        ("preftune.novelty", "", "stands in no layer"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str, said: str) -> None:
    assert said in "\n".join(violations(source, module))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("preftune.methods.planted", "from ..objectives import pairwise\nfrom ..types import Method\nfrom .dpo import dpo"),
        ("preftune.learner", "from . import numerics\nfrom .log import Log"),
        ("preftune.policies.text.planted", "def f():\n    import transformers\nif TYPE_CHECKING:\n    from peft import PeftModel"),
        ("preftune.cli.planted", "from .. import __version__\nfrom ..training import train"),
    ],
)
def test_what_follows_the_arrows_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("program", ["import preftune", "import runpy; sys.argv = ['preftune', '--help']; runpy.run_module('preftune')"])
def test_importing_the_package_and_asking_for_help_load_no_heavy_library(program: str) -> None:
    heavy = ["torch", "numpy", "scipy", *LATE]
    check = f"import sys, atexit; atexit.register(lambda: print('heavy:', [m for m in {heavy!r} if m in sys.modules])); {program}"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "heavy: []" in ran.stdout


def test_every_public_name_exists_and_none_is_also_a_module() -> None:
    modules = {module.split(".")[1] for module, _ in sources() if module != "preftune"}
    assert not modules & set(preftune.__all__)
    for name in preftune.__all__:
        assert getattr(preftune, name) is not None
