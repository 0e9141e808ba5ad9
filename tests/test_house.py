"""The rooms of the house: who may import whom, and how large a room's files may grow."""

import ast
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"base"}),
    frozenset({"config", "images", "networks"}),
    frozenset({"attribution"}),
    frozenset({"store", "evaluation"}),
    frozenset({"training", "deployment", "report"}),
    frozenset({"sweeps"}),
    frozenset({"jobs"}),
)
"""From the ground up. A room imports itself, its own floor and what is below."""
LINES, FUNCTION_LINES, PARAMETERS = 300, 50, 8
ALLOWED = {"_convolution_backward"}
"""Functions with more parameters: these are those of an operation of torch."""
MODULES = sorted([*(ROOT / "igkd").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
ENTRANCE = ROOT / "igkd" / "__main__.py"
"""The command names modules of all rooms, and imports none."""


def room(parts: tuple[str, ...]) -> str:
    """The room of a module, given the parts of its name: jobs is one."""
    return parts[1] if parts[0] == "igkd" and len(parts) > 1 else parts[0]


def imported(tree: ast.Module) -> set[tuple[str, ...]]:
    """Names of all modules that a module imports, at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {(*node.module.split("."), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_goes_up(path: Path) -> None:
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    tree, own = ast.parse(path.read_text()), room(path.relative_to(ROOT).with_suffix("").parts)
    for parts in imported(tree):
        if parts[0] == "ray":
            assert own == "jobs", f"{path} imports ray"
        if parts[0] in ("igkd", "jobs") and len(parts) > 1 and path != ENTRANCE:
            assert height[room(parts)] <= height[own], f"{own} imports {'.'.join(parts)}, which is above it"


def test_no_file_of_tests_grows_too_large() -> None:
    assert [path.name for path in (ROOT / "tests").rglob("*.py") if path.read_text().count("\n") > LINES] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_grows_too_large(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < FUNCTION_LINES, node.name
            given = [one for one in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if one.arg not in ("self", "cls")]
            assert len(given) <= PARAMETERS or node.name in ALLOWED, node.name


def test_modules_of_tests_import_no_other_module_of_tests() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        for parts in imported(ast.parse(path.read_text())):
            assert parts[0] != "tests" or parts[1] == "helpers", f"{path} imports {'.'.join(parts)}"
