"""The house rules that a program can check: who imports whom, and who may see the test split."""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("imaging", "assessment", "speed")
VERBS = {"main", "evaluate", "predict", "export", "app", "prepare", "benchmark"}
STUDIES = "studies"  # measurements: may import anything, and nothing imports them
SPINE = {
    *{
        "options",
        "args",
        "use_args",
        "helper",
        "files",
        "stopping",
        "net",
        "model",
        "checkpoint",
        "dataset",
        "trainer",
    },
    *{"batches", "budget", "execution", "losses", "optim", "ranks", "resizing", "runs"},
    *{"verdicts", "stress", "gallery", "outcome", "classifier", "intake", "answers"},
    *{
        "layers",
        "guard",
        "desk",
        "page",
        "interface",
        "portable",
        "onnx_file",
        "onnx_check",
        "quantise",
    },
}
# What each room may import from the project; a room's name stands for all modules in it.
ALLOWED = {
    "options": set(),
    "args": {"options"},
    "use_args": {"args", "options"},
    "helper": set(),
    "files": {"helper"},
    "stopping": set(),
    "net": set(),
    "imaging": {"imaging", "helper"},
    "assessment": {"assessment", "helper"},
    "model": {"net", "helper"},
    "checkpoint": {"model", "helper"},
    "batches": {"helper"},
    "dataset": {"batches", "imaging", "helper"},
    "budget": set(),
    "execution": {"helper"},
    "losses": {"helper"},
    "optim": set(),
    "ranks": {"helper"},
    "resizing": set(),
    "trainer": {
        *{"model", "checkpoint", "execution", "losses", "optim", "ranks", "resizing", "helper"},
        *{"stopping", "imaging.augment", "assessment.metrics"},
    },
    "runs": {
        *{"args", "trainer", "execution", "budget", "ranks", "verdicts", "layers"},
        *{"model", "checkpoint", "batches", "dataset", "assessment", "helper"},
        "imaging.inventory",
    },
    "verdicts": {
        *{"model", "checkpoint", "batches", "budget", "dataset", "execution"},
        *{"imaging.inventory", "assessment", "helper"},
    },
    "stress": {"verdicts", "model", "imaging.corrupt", "assessment", "helper"},
    "gallery": {"verdicts", "model", "assessment", "helper"},
    "layers": set(),
    "guard": set(),
    "desk": {"answers", "classifier", "intake", "imaging"},
    "page": {
        *{"desk", "answers", "classifier", "dataset", "imaging", "helper"},
        *{"assessment.calibration", "assessment.overlay"},
    },
    "interface": {
        *{"desk", "guard", "page", "classifier", "imaging.archive", "assessment.overlay", "helper"},
    },
    "classifier": {
        *{"layers", "model", "checkpoint", "execution", "assessment", "helper"},
        *{"imaging.grey", "imaging.position"},
    },
    "portable": {"model"},
    "onnx_file": {"portable", "classifier", "assessment", "imaging.grey", "helper"},
    "onnx_check": {"onnx_file", "classifier", "dataset", "imaging", "helper"},
    "quantise": {"onnx_file", "helper"},
    "intake": {"imaging.dicom", "imaging.grey", "imaging.read", "helper"},
    "answers": {"classifier", "intake"},
    "outcome": {"verdicts", "gallery", "imaging.audit", "assessment", "helper"},
    "speed": {
        *{"speed", "runs", "trainer", "optim", "execution", "batches", "dataset", "model", "net"},
        *{"imaging", "args", "options", "helper"},
    },
}
TYPES_ALLOWED = {"trainer": {"args", "batches"}}
WITHOUT_TORCH = ("imaging", "assessment")
WITH_TORCH = {"imaging.augment", "assessment.explain"}
ASKS_FOR_TEST = {
    "evaluate",
    "verdicts",
    "args",
    "imaging.split",
    "imaging.manifest",
    "imaging.audit",
    "studies.leak",
    "studies.headline",
}


def list_modules() -> dict[str, Path]:
    folders = (*ROOMS, STUDIES)
    files = [*ROOT.glob("*.py"), *(path for room in folders for path in (ROOT / room).glob("*.py"))]
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in files
        if path.name != "__init__.py"
    }


MODULES = list_modules()


def find_imports(module: str, *, for_types: bool = False) -> set[str]:
    """Names that a module imports, anywhere in it: at run time, or for type checkers alone."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    typed = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if (id(node) in typed) != for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            parts = {f"{source}.{alias.name}" for alias in node.names}
            found |= (parts & set(MODULES)) or {source}
    return found


def find_project_imports(module: str, *, for_types: bool = False) -> set[str]:
    own = set(MODULES) | {*ROOMS, STUDIES}
    return {name for name in find_imports(module, for_types=for_types) if name in own}


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_nothing_imports_a_study() -> None:
    users = {
        module
        for module in MODULES
        if room_of(module) != STUDIES
        and any(room_of(name) == STUDIES for name in find_imports(module))
    }
    assert not users


def test_only_the_benchmark_measures_speed() -> None:
    users = {
        module
        for module in MODULES
        if room_of(module) not in {"speed", STUDIES}
        and any(room_of(name) == "speed" for name in find_imports(module))
    }
    assert users == {"benchmark"}


def is_within(imported: str, allowed: set[str]) -> bool:
    return imported in allowed or room_of(imported) in allowed


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if room_of(m) in ALLOWED])
def test_imports_go_one_way(module: str) -> None:
    allowed = ALLOWED[room_of(module)]
    allowed = allowed | ({"files"} if "helper" in allowed else set())
    forbidden = {name for name in find_project_imports(module) if not is_within(name, allowed)}
    assert not forbidden, f"{module} may not import {sorted(forbidden)}"
    types_allowed = allowed | TYPES_ALLOWED.get(module, set())
    forbidden = {
        name
        for name in find_project_imports(module, for_types=True)
        if not is_within(name, types_allowed)
    }
    assert not forbidden, f"{module} may not import the types of {sorted(forbidden)}"


@pytest.mark.parametrize("verb", sorted(VERBS & set(MODULES)))
def test_no_verb_imports_another(verb: str) -> None:
    others = find_project_imports(verb) & VERBS
    assert others <= ({"evaluate"} if verb == "main" else set())


def test_every_module_has_a_room() -> None:
    assert {room_of(module) for module in MODULES} == VERBS | SPINE | {*ROOMS, STUDIES}


def test_no_cycles() -> None:
    graph = {module: find_project_imports(module) - set(ROOMS) for module in MODULES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", ["options", "args", "use_args"])
def test_options_are_standard_library_only(module: str) -> None:
    found = {room_of(name) for name in find_imports(module)}
    assert found <= sys.stdlib_module_names | ALLOWED[module]


@pytest.mark.parametrize("module", [m for m in sorted(MODULES) if room_of(m) in WITHOUT_TORCH])
def test_leaves_work_without_torch(module: str) -> None:
    uses_torch = any(room_of(name) == "torch" for name in find_imports(module))
    assert uses_torch == (module in WITH_TORCH)


@pytest.mark.parametrize("module", sorted(set(MODULES) - ASKS_FOR_TEST))
def test_only_evaluate_asks_for_the_test_split(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
    asks = [node.lineno for node in constants if node.value == "test"]
    assert not asks, f"{module}.py line {asks[:1]} names the test split"


def test_files_have_one_subject() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}
    assert lengths["helper"] <= 200
    assert not {name: length for name, length in lengths.items() if length > 450}
