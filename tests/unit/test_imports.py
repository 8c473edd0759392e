"""The order of the house: lower rooms import higher ones, never the reverse, and the core never needs torch; and the
documents show the house as it is."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qwench

ROOT = Path(qwench.__file__).parent
REPOSITORY = Path(__file__).parents[2]

# From the top of the house to the bottom. A module belongs to its first part below qwench.
ORDER = [
    "errors", "host", "shared_files", "progress", "log_lines", "safetensors_file", "option_checks", "formats",
    "quantized_matrix", "checkpoint", "lora", "program", "targets", "calibration", "quantization_option", "config",
    "artifact", "compiler", "parallel", "load", "runtime", "text", "load_draft", "llm", "async_llm", "modeling", "rbln",
    "evaluate", "serve", "cli", "replicas",
]  # fmt: skip
NATIVE = "qwench.targets.cpu._native"  # machine code that imports nothing: the whole house may use it
HUGGING_FACE = {"torch", "transformers", "optimum", "accelerate"}
HUGGING_FACE_ROOMS = {"modeling", "rbln"}

MODULES = {
    ".".join(("qwench", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imports(module: str, *, at_load: bool = False) -> Iterator[str]:
    """Absolute names that a module imports; at_load: only what importing it runs."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    nodes = _loaded(tree) if at_load else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide where a name comes from"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES or name == NATIVE else str(node.module) for name in names)


def _loaded(node: ast.AST) -> Iterator[ast.AST]:
    """Statements outside functions and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        is_hint = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not is_hint and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _loaded(child)


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_place() -> None:
    assert {room(m) for m in MODULES if m != "qwench"} <= set(ORDER)


@pytest.mark.parametrize("document", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_documents_list_the_rooms_in_their_order(document: str) -> None:
    listed = re.search(r"\n((?:    [^\n]* · [^\n]*\n)+)", (REPOSITORY / document).read_text(encoding="utf-8"))
    assert listed is not None
    assert re.findall(r"\w+", listed[1]) == ORDER


def test_what_the_architecture_names_is_there() -> None:
    """Files by their path, and all in the tables of rooms."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+\w+\.\w+)`", text)
    named += re.findall(r"^    ((?:cli|serve|targets)/[\w/.]*)", text, re.MULTILINE)
    assert len(named) > 40
    assert not [name for name in named if not any((base / name).exists() for base in (ROOT, REPOSITORY))]


def test_the_cuda_target_s_page_lists_its_files() -> None:
    text = (REPOSITORY / "docs" / "cuda.md").read_text(encoding="utf-8")
    listed = re.search(r"\n    targets/cuda/\n((?: {6}[^\n]*\n)+)", text)
    assert listed is not None
    kernels = re.search(r"kernels/ +Triton: ([\w, ]+)\n", listed[1])
    assert kernels is not None
    there = {path for path in (ROOT / "targets" / "cuda").rglob("*.py") if path.name != "__init__.py"}
    assert set(kernels[1].split(", ")) == {path.stem for path in there if path.parent.name == "kernels"}
    assert sorted(re.findall(r"\w+\.py", listed[1])) == sorted(p.name for p in there if p.parent.name != "kernels")


@pytest.mark.parametrize("module", [m for m in MODULES if m != "qwench"])
def test_imports_run_one_way(module: str) -> None:
    for name in imports(module):
        if name.startswith("qwench.") and name != NATIVE:
            assert ORDER.index(room(name)) <= ORDER.index(room(module)), f"{module} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports in functions and for type hints count too: a circle is a circle when a reader follows it."""
    # Every module may ask `qwench` for its version, and `qwench` names what users import.
    graph = {m: {name for name in imports(m) if name in MODULES and name != "qwench"} for m in MODULES if m != "qwench"}
    reached = {module: _reachable(graph, module) for module in graph}
    found = {frozenset(n for n in reached[m] if m in reached[n]) for m in graph if m in reached[m]}
    assert not found


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    todo = list(graph[start])
    while todo:
        module = todo.pop()
        if module not in reached:
            reached.add(module)
            todo += graph[module]
    return reached


@pytest.mark.parametrize("module", MODULES)
def test_only_the_hugging_face_rooms_know_torch(module: str) -> None:
    if module == "qwench" or room(module) not in HUGGING_FACE_ROOMS:
        assert not {name.split(".")[0] for name in imports(module)} & HUGGING_FACE


def test_serving_needs_no_compiler() -> None:
    """What the runtime loads, and what that loads, has no compiler, no checkpoint reader and no hub in it."""
    at_load = {m: {name for name in imports(m, at_load=True) if name in MODULES} for m in MODULES}
    runtime = {m for m in MODULES if m.startswith("qwench.runtime")}
    reached = runtime.union(*(_reachable(at_load, m) for m in runtime))
    assert "qwench.targets.target" in reached  # the walk does walk
    forbidden = {"compiler.compiler", "compiler.compile_cache", "load", "checkpoint.weights", "checkpoint.hub"}
    assert {f"qwench.{name}" for name in forbidden} <= set(MODULES)
    assert not reached & {f"qwench.{name}" for name in forbidden}


@pytest.mark.parametrize(
    "modules", ["qwench", "qwench.llm", "qwench.artifact.artifact", "qwench.load, qwench.compiler.compiler"]
)
def test_importing_the_core_is_light(modules: str) -> None:
    heavy = ("torch", "transformers", "huggingface_hub", "fastapi")
    code = f"import sys, {modules}; print([m for m in {heavy!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("code", ["from qwench import QwenchForCausalLM", "import qwench.rbln"])
def test_without_the_extra_that_an_import_needs(code: str) -> None:
    """ModuleNotFoundError, as libraries that try an import expect, says what to install."""
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['torch'] = None; {code}"], capture_output=True, text=True
    )
    says = 'ModuleNotFoundError: qwench.modeling needs torch, which isn\'t installed: pip install "qwench[hf]"'
    assert run.stderr.splitlines()[-1] == says


def test_native_sources_include_what_declares_memcpy() -> None:
    """Newer releases of nanobind and of libstdc++ bring it along, older ones don't."""
    native = REPOSITORY / "src/qwench/targets/cpu/native"
    sources = {path: path.read_text(encoding="utf-8") for path in (*native.rglob("*.cpp"), *native.rglob("*.h"))}
    callers = {path for path, text in sources.items() if re.search(r"std::mem(cpy|move|set|cmp)\(", text)}
    assert callers and not [path.name for path in callers if "#include <cstring>" not in sources[path]]
