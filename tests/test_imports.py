"""Importing costs what it is worth: `import mmdiff` nothing, the rest of the house no optional giant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GIANTS = ["deepspeed", "transformers", "diffusers", "decord", "av", "torchaudio", "torch._dynamo", "tensorboard"]
GIANTS += ["torch.utils.tensorboard", "matplotlib", "scipy", "PIL", "rich"]


def loaded_by(code: str) -> dict[str, list[str]]:
    """What a fresh interpreter prints as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_import_mmdiff_is_free() -> None:
    """Neither torch nor numpy: `--help` and `mmdiff.__version__` answer at once."""
    code = (
        "import json, sys; old = set(sys.modules); import mmdiff; print(json.dumps({'new': [*{*sys.modules} - old]}))"
    )
    assert loaded_by(code)["new"] == ["mmdiff"]


def test_importing_every_module_brings_no_giant() -> None:
    """Each giant belongs to functions: a machine without it can do everything else, and nobody waits for it in vain."""
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "mmdiff").rglob("*.py"))
    ]
    code = f"""
import importlib, json, sys
import torch
ours = {{name for name in {GIANTS!r} if name in sys.modules}}
guilty = {{}}
for name in {names!r}:
    importlib.import_module(name)
    new = [giant for giant in {GIANTS!r} if giant in sys.modules and giant not in ours]
    if new:
        guilty[name] = new
        ours.update(new)
print(json.dumps(guilty))
"""
    assert loaded_by(code) == {}
