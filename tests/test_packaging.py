"""The package is what it says: declared dependencies, its version, its files, and an import that costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import mmdiff

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "deepspeed", "omegaconf", "av", "decord", "rich", "torchaudio", "transformers")
# import name -> what pyproject.toml calls it
DECLARED = {re.match(r"[\w.-]+", text)[0].lower() for text in metadata.requires("mmdiff") or ()}


def test_the_version_is_written_once():
    assert metadata.version("mmdiff") == mmdiff.__version__


def test_importing_mmdiff_imports_nothing_heavy():
    code = f"import mmdiff, mmdiff.errors, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def _imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def test_every_import_is_declared():
    known = (
        sys.stdlib_module_names | DECLARED | {"mmdiff", "yaml", "PIL"}
    )  # omegaconf and tensorboard require these two
    for path in [*ROOT.glob("mmdiff/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*/*.py")]:
        foreign = {name.split(".")[0] for name in _imports(path)} - known
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}, which pyproject.toml does not declare"


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile", "setup.py"])
def test_what_a_visitor_looks_for_is_there(name):
    assert (ROOT / name).stat().st_size > 100


def test_ci_runs_the_readme_command():
    assert "make test" in (ROOT / "README.md").read_text() and "make test" in (ROOT / ".ci/run").read_text()
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_page_templates_travel_with_the_package():
    import tomllib

    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    kinds = {path.suffix for path in (ROOT / "mmdiff").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert kinds - {".py"} <= {Path(pattern).suffix for pattern in tables["package-data"]["mmdiff"]}
