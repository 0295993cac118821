"""What SECURITY.md promises, a test each: no code from files, no bombs, no secrets, no name chosen by a prompt."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
import time
import types
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff import build, config, generate
from mmdiff.data import media
from mmdiff.data.manifest import read_entries
from mmdiff.errors import UserError
from mmdiff.metrics import plugins
from mmdiff.request import read_prompts
from mmdiff.train import checkpoint, zero

sys.path.insert(0, str(Path(__file__).resolve().parent / "train"))
import fakes

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [path for part in ("mmdiff", "tools", "datasets") for path in sorted((ROOT / part).rglob("*.py"))]

# ---- no code from files --------------------------------------------------------------------------------------------

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
FORBIDDEN_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("shell", True), ("trust_remote_code", True)}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> list[str]:
    """What in a source could run code that a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        if isinstance(node, ast.Call):
            said = {(k.arg, k.value.value) for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
            found += [f"{name}={value}" for name, value in said & FORBIDDEN_KEYWORDS]
            found += [dotted(node.func)] * (dotted(node.func) in FORBIDDEN_CALLS)
            found += ["torch.load"] * (dotted(node.func) == "torch.load" and ("weights_only", True) not in said)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_can_run_code_from_a_file(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


def test_the_lint_sees_what_it_forbids() -> None:
    bad = "import pickle\nfrom yaml import x\nyaml.load(f)\ntorch.load(f)\ntorch.load(f, weights_only=False)\neval(s)\n"
    assert set(dangers(bad)) == {"pickle", "yaml.load", "torch.load", "weights_only=False", "eval"}
    assert dangers("torch.load(f, weights_only=True)\nyaml.safe_load(f)\nmodel.eval()\n") == []


class Payload:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def trained(folder: Path) -> Path:
    fakes.train(fakes.Run(str(folder), steps=2))
    return folder


def of_run(name: str) -> Callable[[Path, bytes], None]:
    """Put the payload in the place of a file of a run, and continue the run."""

    def read(folder: Path, payload: bytes) -> None:
        run = trained(folder / "run")
        (found,) = run.rglob(name) if name != "config.yaml" else [run / name]
        found.write_bytes(payload)
        fakes.train(fakes.Run(str(run), steps=3))

    return read


def of_file(name: str, reader: Callable[[Path], Any]) -> Callable[[Path, bytes], None]:
    """Give the payload to a reader as a file of this name."""

    def read(folder: Path, payload: bytes) -> None:
        (folder / name).write_bytes(payload)
        reader(folder / name)

    return read


READERS = {
    **{name: of_run(name) for name in ("model.safetensors", "manifest.json", "latents.safetensors", "config.yaml")},
    "optimizer": of_run("optimizer-00000.safetensors"),
    "exported weights": of_file("model.safetensors", lambda path: checkpoint.load_weights(path.parent)),
    "config": of_file("x.yaml", config.read),
    "deepspeed": of_file(
        "x.json", lambda path: zero.configure(fakes.Run("r", engine=fakes.Engine(config=str(path))), world=1)
    ),
    "manifest": of_file("manifest.jsonl", read_entries),
    "table": of_file("manifest.csv", read_entries),
    "prompts": of_file("prompts.txt", read_prompts),
    "video": of_file("a.mp4", media.probe),
    "picture": of_file("a.png", media.probe),
    "sound": of_file("a.wav", media.probe),
    "network": of_file("x.pt", lambda path: plugins.load("fvd", path)),
}


@pytest.mark.parametrize("form", ["pickle", "torch"])
@pytest.mark.parametrize("name", READERS)
def test_no_payload_runs_from_any_file_that_is_read(name: str, form: str, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    payload = pickle.dumps(Payload(mark))
    if form == "torch":
        torch.save(Payload(mark), tmp_path / "payload")
        payload = (tmp_path / "payload").read_bytes()
    with pytest.raises(UserError):
        READERS[name](tmp_path, payload)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # it would have


# ---- exports -------------------------------------------------------------------------------------------------------


def test_an_export_is_safetensors_and_text_and_needs_nothing_of_ours(tmp_path: Path) -> None:
    """Plain safetensors in another process give the network's own outputs; nothing in the folder is a pickle."""
    run = trained(tmp_path / "run")
    weights, _, _ = checkpoint.load_weights(run)
    folder = tmp_path / "export"
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"step": "2"})
    for path in [*folder.iterdir(), *(run / "checkpoints").rglob("*.*")]:
        if path.is_file():
            head = path.read_bytes()[:2]
            assert path.suffix in (".safetensors", ".json", ".yaml") and head[:1] != b"\x80" and head != b"PK"
    code = (
        "import sys, torch; from safetensors.torch import load_file; w = load_file(sys.argv[1])\n"
        "assert not any(name.startswith('mmdiff') for name in sys.modules)\n"
        "f = torch.nn.functional; p = 'learner.net.'; x = torch.linspace(-1, 1, 24).view(2, 12)\n"
        "l = lambda h, n: f.linear(h, w[p + n + '.weight'], w[p + n + '.bias'])\n"
        "h = l(x, 'enter')\n"
        "for i in range(3): h = h + l(f.silu(h), f'blocks.{i}.1')\n"
        "print((l(h * (1 + l(h, 'modulation')), 'leave')).flatten().tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "model.safetensors")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    system = fakes.System()
    system.load_state_dict(load_file(folder / "model.safetensors"))
    ours = system.learner["net"](torch.linspace(-1, 1, 24).view(2, 12)).flatten()
    assert (ours - torch.tensor(json.loads(done.stdout))).abs().max() < 1e-6


# ---- bombs and secrets ---------------------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))


@pytest.mark.parametrize("text", [LAUGHS, "a: " + "[" * 50000, "a: !!python/object/apply:os.system [ls]\n", "[1]\n"])
def test_a_hostile_config_in_a_run_folder_is_refused_quickly(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(UserError, match="config.yaml"):
        fakes.train(fakes.Run(str(tmp_path), steps=1))
    with pytest.raises(UserError, match="config.yaml"):
        build.load(tmp_path)
    assert time.process_time() - began < 4


def test_no_secret_is_logged_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "sesame-opens")
    (tmp_path / "x.yaml").write_text("a: ${oc.env:HF_TOKEN}\n")
    with pytest.raises(UserError) as caught:
        config.read(tmp_path / "x.yaml")
    run = trained(tmp_path / "run")
    kept = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert "sesame" not in str(caught.value) + said.out + said.err and b"sesame" not in kept


def png(width: int, height: int, rows: bytes) -> bytes:
    """A picture that claims a size and holds what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_that_claim_too_much_are_refused(tmp_path: Path) -> None:
    for k, (width, height) in enumerate([(60_000, 60_000), (2**31 - 1, 1), (1, 2**31 - 1), (0, 0), (8193, 8193)]):
        path = tmp_path / f"{k}.png"
        path.write_bytes(png(width, height, zlib.compress(bytes(1000))))
        began = time.process_time()
        with pytest.raises(media.BadMedia, match=path.name):
            media.probe(path)
        assert time.process_time() - began < 2


def test_a_film_of_too_many_streams_or_hours_is_refused(tmp_path: Path) -> None:
    import av

    for name, streams, stamps in (("many.mkv", 40, [0, 1]), ("long.mkv", 1, [0, 100_000])):
        with av.open(str(tmp_path / name), "w") as out:
            made = [out.add_stream("ffv1", rate=1) for _ in range(streams)]
            for stream in made:
                stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
            for stream in made:
                for stamp in stamps:
                    frame = av.VideoFrame(16, 16, "yuv420p")
                    frame.pts = stamp
                    out.mux(stream.encode(frame))
                out.mux(stream.encode(None))
        with pytest.raises(media.BadMedia, match="more than 32 streams or 86400 s"):
            media.probe(tmp_path / name)


# ---- names ---------------------------------------------------------------------------------------------------------


def hostile(k: int) -> str:
    parts = ["../" * (k % 7), "a\0b", "/etc/passwd", "\U0001f534", "x" * 10_000, "\udcff", "$(touch x)", "a\nb", "CON"]
    return f"{parts[k % len(parts)]}{k if k % 3 else ''}"


def test_a_thousand_hostile_prompts_stay_inside_under_unique_names(tmp_path: Path, monkeypatch: Any) -> None:
    class Dream:
        def generate(self, batch: Any, **named: Any) -> dict[str, Any]:
            b = len(batch["id"])
            return {"video": torch.zeros(b, 3, 1, 4, 4), "fps": torch.ones(b), "rate": 0}

    loaded = types.SimpleNamespace(load=lambda run, **named: (Dream(), {"sample": {}}, {"step": 1, "hash": "x"}))
    monkeypatch.setattr(generate, "build", loaded)
    prompts = [hostile(k) for k in range(1000)]
    paths = generate.sample_prompts("r", prompts, out=tmp_path / "out", batch=250, devices=["cpu"], progress=False)
    assert len(set(paths)) == 1000 and all(path.parent == tmp_path / "out" for path in paths)
    assert all(path.resolve() == path and path.is_file() for path in paths)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and len(list((tmp_path / "out").iterdir())) == 2000
    kept = [json.loads(path.with_suffix(".json").read_text())["prompt"] for path in paths]
    assert kept == [prompt.encode(errors="replace").decode() for prompt in prompts]  # half a surrogate is no text
