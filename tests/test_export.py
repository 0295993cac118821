"""Compiled blocks compute what eager blocks compute, in one graph each; exported weights are those of the run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff import build, config, noise
from mmdiff.errors import UserError
from mmdiff.export import export
from mmdiff.models.dit import DiT
from mmdiff.train.engine import compile_blocks


def test_hot_methods_trace_as_whole_graphs_and_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """fullgraph refuses any break; the eager backend keeps the arithmetic, so the results are equal."""
    net = DiT(channels=3, width=16, depth=2, heads=2, attention="factorised", text_width=8)
    for i, p in enumerate(net.parameters()):
        p.data = 0.1 * noise.normal(p.shape, keys=[noise.key("weights", i)])[0]
    draw = partial(noise.normal, keys=[1, 2])
    cond = {
        "seconds": {"video": torch.arange(4.0).expand(2, -1)},
        "tokens": draw((5, 8)),
        "mask": torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        "vector": draw((8,)),
    }
    x, t = draw((3, 4, 2, 2)), torch.tensor([0.2, 0.9])
    before = net(x, t, cond)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    names = [name for module in net.modules() for name in getattr(module, "hot", ())]
    compile_blocks(net)
    assert names == ["attend", "feed"] * 2 and before.abs().max() > 0
    assert torch.equal(net(x, t, cond), before)


def run_of(folder: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A folder that holds one exported system, its weights random."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config.dump(build.read("configs/sounding_objects/smoke.yaml")))
    state = build.make_system(build.parse(build.read(folder / "config.yaml"))).state_dict()
    state = {name: value * scale if value.is_floating_point() else value for name, value in state.items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return state


def test_an_export_loads_as_the_run(tmp_path: Path) -> None:
    state = run_of(tmp_path / "run")
    whole = load_file(export(tmp_path / "run", tmp_path / "whole"))
    assert all(torch.equal(value, state[name]) for name, value in whole.items())
    shared = state.keys() - whole.keys()
    assert shared and all("audio" in name for name in shared)  # stored once, under the name in the video branch
    half = export(tmp_path / "run", tmp_path / "half", half=True)
    assert half.stat().st_size < 0.65 * (tmp_path / "whole" / "model.safetensors").stat().st_size
    system, _, _ = build.load(tmp_path / "half")
    for name, value in system.state_dict().items():
        assert value.dtype == state[name].dtype and torch.allclose(value, state[name], rtol=2**-10, atol=1e-7), name


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    run_of(tmp_path / "run", scale=1e6)
    with pytest.raises(UserError, match="float16.*--half"):
        export(tmp_path / "run", tmp_path / "half", half=True)


def test_shared_weights_load_as_their_average(tmp_path: Path) -> None:
    """Averages are kept under a parameter's first name; its other names must not bring the raw weights back."""
    state = run_of(tmp_path / "run")
    system = build.make_system(build.parse(build.read(tmp_path / "run" / "config.yaml")))
    save_file({name: p.detach() + 1 for name, p in system.named_parameters()}, tmp_path / "run" / "ema.safetensors")
    loaded, _, _ = build.load(tmp_path / "run")
    own = dict(system.named_parameters())
    for name, p in loaded.named_parameters():
        assert torch.allclose(p, own[name] + 1, atol=1e-6), name
    assert len(own) < len([name for name in state if name.startswith("learner")])
