"""Plug-ins: networks of the published interface, small ones; the preprocessing is what the protocol says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmdiff.errors import UserError
from mmdiff.metrics.frechet import frechet
from mmdiff.metrics.plugins import PROTOCOLS, load, vggish_patches
from mmdiff.metrics.score import Clip
from mmdiff.noise import rng


class I3D(nn.Module):
    """The interface of the TorchScript I3D: the network would rescale and resize unless told not to."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert list(x.shape[1:]) == [3, 16, 224, 224] and not rescale and not resize and return_features
        assert float(x.min()) >= -1 and float(x.max()) <= 1
        return torch.cat([x.mean((2, 3, 4)), x.std((2, 3, 4))], 1)


class Inception(nn.Module):
    """The interface of the TorchScript Inception of 2015: bytes in, features out."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert img.dtype == torch.uint8 and return_features
        return img.float().mean((2, 3)) / 255


class VGGish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert list(x.shape[1:]) == [1, 96, 64]
        return x.mean((1, 2))


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.unfold(1, 960, 960).abs().mean(2)[:, :4]


class Bind(nn.Module):
    """Two towers in one file: loudness over time, and brightness over time."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def video(self, x: Tensor) -> Tensor:
        assert list(x.shape[3:]) == [224, 224] and x.shape[1] == 3
        return x.mean((1, 3, 4)) - x.mean()

    @torch.jit.export
    def audio(self, x: Tensor) -> Tensor:
        level = x.abs().reshape(x.shape[0], 16, -1).mean(2)
        return level - level.mean()


def clips(n: int, *, bright: float = 0.0) -> list[Clip]:
    """Flashes with bursts of noise in the same sixteenth of a clip."""
    made = []
    for i in range(n):
        draw = rng(i + 1000 * int(bright))
        video = np.clip(draw.integers(0, 90, (16, 20, 24, 3)) + bright, 0, 255).astype(np.uint8)
        audio = (0.01 * draw.standard_normal(16000)).astype(np.float32)
        video[i % 16] = 220
        audio[i % 16 * 1000 : (i % 16 + 1) * 1000] *= 30
        made.append((video, audio, 8.0, 8000))
    return made


def scripted(folder: Path, net: nn.Module) -> Path:
    torch.jit.script(net).save(str(folder / "net.pt"))
    return folder / "net.pt"


@pytest.mark.parametrize(("name", "net"), [("fvd", I3D()), ("fid", Inception())])
def test_distances_of_pictures(name: str, net: nn.Module, tmp_path: Path) -> None:
    plugin = load(name, scripted(tmp_path, net))
    names = [str(i) for i in range(8)]
    reference = plugin.embed(clips(8), names)
    row = plugin.row(clips(8, bright=60.0), names, reference, seed=0)
    assert row["value"] > 0.05 and row["low"] < row["value"] < row["high"] and row["n"] == 8
    same = plugin.row(clips(8), names, reference, seed=0)["value"]
    assert same == pytest.approx(0, abs=1e-6) and plugin.row(clips(8), names, None, seed=0)["n"] == 0
    flat = reference.reshape(8, -1)
    assert row["value"] == pytest.approx(frechet(plugin.embed(clips(8, bright=60.0), names).reshape(8, -1), flat))


def test_distances_of_sounds(tmp_path: Path) -> None:
    names = [str(i) for i in range(20)]
    for name, net in (("fad_vggish", VGGish()), ("fad_clap", Wave())):
        plugin = load(name, scripted(tmp_path, net))
        quiet = [(v, 0.1 * a, f, r) for v, a, f, r in clips(20)]
        reference = plugin.embed(clips(20), names)
        assert (
            plugin.row(quiet, names, reference, seed=0)["value"]
            > plugin.row(clips(20), names, reference, seed=0)["value"]
        )


def test_scores_of_pairs_tell_true_from_shuffled(tmp_path: Path) -> None:
    plugin = load("imagebind_score", scripted(tmp_path, Bind()))
    true = clips(16)
    false = [(v, true[(i + 5) % 16][1], f, r) for i, (v, _, f, r) in enumerate(true)]
    scores = [plugin.embed(made, [""] * 16) for made in (true, false)]
    assert scores[0].min() > 0.9 > 0.3 > scores[1].max()


def test_clip_score_of_a_local_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *(chr(c) for c in range(97, 123)),
        *(f"{chr(c)}</w>" for c in range(97, 123)),
    ]
    import json

    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 20}
    config = transformers.CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8})
    transformers.CLIPModel(config).save_pretrained(tmp_path, safe_serialization=True)
    transformers.CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(tmp_path)
    plugin = load("clip_score", tmp_path)
    scores = plugin.embed(clips(3), ["a dog", "a cat", "a bird"])
    assert scores.shape == (3,) and ((scores >= 0) & (scores <= 100)).all()
    assert "only 3 clips" in plugin.record(3)["protocol"] and len(plugin.weights) == 64


def test_the_front_end_of_vggish_puts_a_tone_into_its_band() -> None:
    t = torch.arange(32000) / 16000
    patches = vggish_patches(torch.sin(2 * torch.pi * 1000 * t))
    assert patches.shape == (2, 1, 96, 64)
    low, tone, high = np.log1p(np.array([125, 1000, 7500]) / 700)
    band = (tone - low) / (high - low) * 65 - 1
    assert abs(int(patches[0, 0].mean(0).argmax()) - band) <= 1
    assert vggish_patches(torch.zeros(10)).mean() == pytest.approx(np.log(0.01))


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "bad.pt").write_bytes(pickle.dumps(print))
    for name, path, told in (
        ("fvd", "bad.pt", "not TorchScript"),
        ("fvd", "no.pt", "no weights"),
        ("x", "bad.pt", "Choose"),
    ):
        with pytest.raises(UserError, match=told):
            load(name, tmp_path / path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="takes a TorchScript file"):
        load("fid", tmp_path / "folder")
    assert all(len(protocol.words) > 40 and protocol.clips >= 1000 for protocol in PROTOCOLS.values())
