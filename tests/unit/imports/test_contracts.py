"""Which package may import what: the tree is the architecture."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


def imported_modules(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Returns the modules a file imports, as written; ``TYPE_CHECKING`` blocks do not count."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not (top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))):
            pending += ast.iter_child_nodes(node)
    return found


def offenders(folder: str, forbidden: tuple[str, ...], **options: bool) -> list[str]:
    result = []
    for path in sorted((REPO / folder).rglob("*.py")):
        for module in imported_modules(path, **options):
            if module.split(".")[0] in forbidden:
                result.append(f"{path.relative_to(REPO)} imports {module}")
    return result


def test_there_is_something_to_check():
    assert len(list((REPO / "helium").rglob("*.py"))) > 20
    assert len(list((REPO / "vllm_helium").rglob("*.py"))) > 10
    assert imported_modules(REPO / "vllm_helium/engine_calls.py") >= {"vllm", "vllm.outputs"}


def test_helium_imports_neither_vllm_nor_torch():
    assert offenders("helium", ("vllm", "torch", "vllm_helium", "triton")) == []


def test_nothing_that_ships_imports_tests_benchmarks_or_tools():
    for folder in ("helium", "vllm_helium"):
        assert offenders(folder, ("tests", "benchmarks", "tools", "pytest", "hypothesis")) == []


def test_nothing_pickles():
    for folder in ("helium", "vllm_helium"):
        assert offenders(folder, ("pickle", "cloudpickle", "dill", "marshal", "shelve")) == []


@pytest.mark.parametrize(
    "module",
    [
        "vllm_helium",
        "vllm_helium.config",
        "vllm_helium.request",
        "vllm_helium.integration.engine_args",
        "vllm_helium.integration.openai_workflow_field",
        "vllm_helium.integration.offline_workflow_argument",
        "vllm_helium.integration.request_report",
        "helium.runtime",
        "helium.protocol",
    ],
)
def test_what_upstream_imports_while_it_loads_does_not_import_vllm(module):
    """Checked in a fresh interpreter: the whole closure counts, not only the file."""
    code = f"import sys, {module}; print([m for m in ('vllm', 'torch') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True
    )
    assert done.stdout.strip() == "[]"


def test_patches_call_only_the_integration_folder_or_the_two_light_modules():
    allowed = ("vllm_helium.integration.", "vllm_helium.config", "vllm_helium.request")
    for patch in sorted((REPO / "patches").glob("*.patch")):
        for line in patch.read_text().splitlines():
            if line.startswith("+") and "vllm_helium" in line and "import" in line:
                module = line.split("vllm_helium", 1)[1].split()[0]
                assert f"vllm_helium{module}".startswith(allowed), f"{patch.name}: {line}"


def test_what_a_patch_says_it_calls_is_there():
    sys.path.insert(0, str(REPO / "tools"))
    from patches import load_series

    for patch in load_series():
        first = patch.headers["Calls"].replace(",", " ").split()[0]
        assert first.startswith("vllm_helium."), f"{patch.slug}: {first}"
        parts = first.split(".")
        files = [REPO.joinpath(*parts[:n]).with_suffix(".py") for n in range(2, len(parts) + 1)]
        assert any(file.is_file() for file in files), f"{patch.slug} calls {first}: no such module"
