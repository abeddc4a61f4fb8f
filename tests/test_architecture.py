"""Checks of the program's structure: who may import whom, and who may ask for the test split."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {"main", "evaluate", "predict", "prepare", "export", "app", "benchmark"}
# A module or package may import what stands on a later line, never on an earlier or its own line.
LAYERS: list[set[str]] = [
    {"experiments"},
    COMMANDS,
    {"benchmarking"},
    {"runs", "webapp", "onnx_export"},
    {"trainer", "reporting", "inference"},
    {"evaluation"},
    {"dataset"},
    {"preparation", "training", "modeling"},
    {"loading", "duplicates", "explanation"},
    {"model", "phantoms"},
    {"imaging"},
    {"net", "args", "backbones"},
    {"common"},
    {"helper"},
]
EXCEPTIONS = {
    ("main", "evaluate"),  # a run ends with the evaluation of its test split
}
LAYER_OF = {unit: level for level, units in enumerate(LAYERS) for unit in units}
WITHOUT_TORCH = {"imaging", "phantoms", "duplicates", "preparation", "args", "common"}
MAY_NAME_TEST = {  # modules that may hold the word "test" for the split
    *("args", "evaluate", "evaluation.predictions"),
    *("preparation.splits", "preparation.manifest", "preparation.audit"),
    "preparation.published_split",
    "preparation.folder_kinds",
}


def list_modules() -> dict[str, Path]:
    """Dotted name and path of every module of the program."""
    files = [
        *ROOT.glob("*.py"),
        *(path for unit in LAYER_OF for path in (ROOT / unit).glob("*.py")),
    ]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in files
        if path.name != "__init__.py"
    }


MODULES = list_modules()


def unit_of(name: str) -> str:
    """The root module or package that a dotted name lies in."""
    return name.split(".")[0]


def find_imports(source: str) -> set[str]:
    """Dotted names that a source imports anywhere, also those for type checkers alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (parts & set(MODULES)) or {node.module or ""}
    return found


def find_upward_imports(module: str, source: str) -> set[str]:
    """Imports of a module that do not point to a lower layer or into its own package."""
    own = unit_of(module)
    units = {unit_of(name) for name in find_imports(source)} & set(LAYER_OF) - {own}
    return {
        unit for unit in units if LAYER_OF[unit] <= LAYER_OF[own] and (own, unit) not in EXCEPTIONS
    }


def read(module: str) -> str:
    return MODULES[module].read_text("utf-8")


def test_imports_point_one_way() -> None:
    wrong = {module: find_upward_imports(module, read(module)) for module in MODULES}
    assert not {module: units for module, units in wrong.items() if units}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("imaging.reader", "import trainer"),
        ("evaluation.metrics", "from reporting import plots"),
        ("predict", "import evaluate"),
        ("training.optimizer", "def late():\n    from modeling.checkpoint import load_run"),
    ],
)
def test_a_planted_upward_import_is_found(module: str, source: str) -> None:
    assert find_upward_imports(module, source)


def test_every_module_has_a_layer() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    roots = {path.stem for path in ROOT.glob("*.py")}
    assert folders | roots == set(LAYER_OF)
    assert len(roots) == 13


def test_no_cycles() -> None:
    graph = {module: find_imports(read(module)) & set(MODULES) for module in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_help_needs_the_standard_library_alone() -> None:
    for module in ("args", "common.cli"):
        units = {unit_of(name) for name in find_imports(read(module))}
        assert units <= sys.stdlib_module_names | {"common", "helper"}, module


def test_data_packages_work_without_torch() -> None:
    users = {
        module
        for module in MODULES
        if unit_of(module) in WITHOUT_TORCH
        and any(unit_of(name) == "torch" for name in find_imports(read(module)))
    }
    assert not users


def test_only_evaluation_asks_for_the_test_split() -> None:
    asks = {
        module
        for module in set(MODULES) - MAY_NAME_TEST
        for node in ast.walk(ast.parse(read(module)))
        if isinstance(node, ast.Constant) and node.value == "test"
    }
    assert not asks


def test_files_have_one_subject() -> None:
    lengths = {module: len(read(module).splitlines()) for module in MODULES}
    assert not {module: length for module, length in lengths.items() if length > 400}
