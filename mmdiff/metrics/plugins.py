"""The published scores that need a trained network: FVD, FID, FAD, CLIP and ImageBind scores, with weights of your own.

The one idea: nothing is downloaded and nothing is guessed. A plug-in is a network in a file that you name, the exact
preprocessing of one published protocol, and a sentence that says which, stored with the number and with a hash of the
weights. Networks are TorchScript files (.pt, run by torch.jit; never a pickle of Python objects) or, for CLIP and CLAP,
a local Hugging Face folder with safetensors. Traps that the sentences name: "FAD" in MM-Diffusion and JavisBench is
AudioCLIP x 10^4 and not VGGish; FVD moves by a factor of three with frames, stride and count of clips (Skorokhodov et
al., "StyleGAN-V", 2022, appendix); a Frechet distance of few clips is mostly bias.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmdiff.data.media import resample
from mmdiff.errors import UserError
from mmdiff.metrics import frechet, statistics
from mmdiff.metrics.score import Clip

Floats = NDArray[np.float32]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Protocol:
    """One published score: what it needs, how many clips its papers use, and what it does, in words."""

    needs: tuple[str, ...]  # modalities
    clips: int  # with fewer the number is not comparable with published ones
    words: str
    embed: Callable[..., Floats]  # (network, clips, prompts) -> (clips samples d), or (clips,) of a score
    distance: bool  # a Frechet distance between sets, or the mean of scores of single clips


@dataclass(frozen=True)
class Plugin:
    """A protocol with its network loaded."""

    name: str
    network: Any
    weights: str  # SHA-256 of the file or folder

    @property
    def protocol(self) -> Protocol:
        """What the plug-in computes."""
        return PROTOCOLS[self.name]

    def record(self, n: int) -> dict[str, Any]:
        """What a result has to say about this number."""
        few = f"; only {n} clips here, so do not compare with published numbers" if n < self.protocol.clips else ""
        return {"weights": self.weights, "protocol": self.protocol.words + few}

    def embed(self, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
        """Features (clips samples d), or scores (clips,)."""
        with torch.no_grad():
            return self.protocol.embed(self.network, clips, prompts)

    def row(
        self, clips: Sequence[Clip], prompts: list[str], reference: Floats | None, *, seed: int
    ) -> dict[str, float]:
        """The number with its interval over prompts; distances need the reference's features."""
        found = self.embed(clips, prompts)
        if not self.protocol.distance:
            return statistics.interval(found.tolist(), seed=seed, prompts=prompts).row()
        if reference is None or len(clips) < 2:
            return statistics.Interval(math.nan, math.nan, math.nan, 0).row()
        return frechet.frechet_interval(found, reference, prompts=prompts, seed=seed).row()


def load(name: str, path: str | Path) -> Plugin:
    """The plug-in `name` with the weights at `path`: TorchScript, or a folder for clip_score and fad_clap."""
    path = Path(path)
    if name not in PROTOCOLS:
        raise UserError(f"There is no plug-in called {name!r}. Choose one of {', '.join(PROTOCOLS)}.")
    if not path.exists():
        raise UserError(f"{name}: there are no weights at {path}. {PROTOCOLS[name].words}")
    try:
        network = _hugging_face(name, path) if path.is_dir() else torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{name}: {path} is not TorchScript or a safetensors folder that can be loaded ({reason})."
        ) from None
    return Plugin(name, network, _digest(path))


def _digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def _hugging_face(name: str, path: Path) -> Any:
    """(model, processor) from a local folder; weights only as safetensors."""
    import transformers

    kinds = {"clip_score": ("CLIPModel", "CLIPProcessor"), "fad_clap": ("ClapModel", "ClapFeatureExtractor")}
    if name not in kinds:
        raise UserError(f"{name}: {path} is a folder; this plug-in takes a TorchScript file.")
    model, processor = (getattr(transformers, kind) for kind in kinds[name])
    local = model.from_pretrained(path, use_safetensors=True, local_files_only=True).eval()
    return local, processor.from_pretrained(path, local_files_only=True)


# ---- pictures ------------------------------------------------------------------------------------------------------


def _pictures(clip: Clip, *, size: int, frames: int | None = None, antialias: bool = True) -> Tensor:
    """Frames of a clip (evenly spaced; None: all) as float (t 3 size size) in [0, 255]."""
    video = torch.from_numpy(np.array(clip[0])).permute(0, 3, 1, 2).float()  # t 3 h w
    if frames is not None:
        video = video[((torch.arange(frames) + 0.5) / frames * len(video)).long()]
    options: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": antialias}
    return video if video.shape[-2:] == (size, size) else F.interpolate(video, (size, size), **options)


def fvd(network: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
    """I3D features of 16 frames (1 3 16 224 224) in [-1, 1] -> (clips 1 d)."""
    made = []
    for clip in clips:
        x = _pictures(clip, size=224, frames=16, antialias=False) / 127.5 - 1  # t 3 h w
        made.append(_call(network, x.transpose(0, 1)[None], rescale=False, resize=False, return_features=True))
    return _array(made)


def fid(network: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
    """Inception features of each clip's middle frame, uint8 (1 3 h w) as it is -> (clips 1 d)."""
    made = []
    for clip in clips:
        middle = torch.from_numpy(np.array(clip[0][len(clip[0]) // 2])).permute(2, 0, 1)[None]  # 1 3 h w
        made.append(_call(network, middle, return_features=True))
    return _array(made)


def clip_score(network: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
    """100 max(cosine, 0) of picture and caption, the mean of 8 frames -> (clips,)."""
    model, processor = network
    made = []
    for clip, prompt in zip(clips, prompts, strict=True):
        frames = clip[0][((np.arange(8) + 0.5) / 8 * len(clip[0])).astype(int)]
        given = processor(text=[prompt], images=list(frames), return_tensors="pt", padding=True, truncation=True)
        out = model(**given)
        cosine = F.normalize(out.image_embeds, dim=-1) @ F.normalize(out.text_embeds, dim=-1).T  # 8 1
        made.append(float(cosine.clamp(min=0).mean()) * 100)
    return np.array(made, np.float32)


# ---- sounds --------------------------------------------------------------------------------------------------------


def _wave(clip: Clip, rate: int) -> Tensor:
    """A clip's sound at another rate -> (1 n)."""
    return resample(torch.from_numpy(np.array(clip[1], np.float32))[None], rate=clip[3], to=rate)


def fad_vggish(network: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
    """VGGish embeddings of every .96 s (k 1 96 64) of log-mel at 16 kHz -> (clips k d)."""
    return np.stack([_plain(network(vggish_patches(_wave(clip, 16000)[0]))) for clip in clips])


def vggish_patches(audio: Tensor) -> Tensor:
    """(n,) at 16 kHz -> (k 1 96 64): log(mel + .01), 25 ms windows each 10 ms, 64 HTK bands of 125-7500 Hz."""
    audio = F.pad(audio, (0, max(0, 15600 - len(audio))))  # one patch at least
    window = torch.hann_window(400, periodic=True)
    frames = F.pad(audio.unfold(0, 400, 160) * window, (0, 112))  # t 512
    mel = torch.fft.rfft(frames).abs() @ _htk_filters()  # t 64
    level = torch.log(mel + 0.01)
    return torch.stack([level[i : i + 96] for i in range(0, len(level) - 95, 96)])[:, None]  # k 1 96 64


def _htk_filters() -> Tensor:
    """Triangles that are even in mel = 1127 ln(1 + f / 700) -> (257 64); the constant bin is left out."""
    edges = torch.linspace(1127 * math.log1p(125 / 700), 1127 * math.log1p(7500 / 700), 66)
    bins = 1127 * torch.log1p(torch.linspace(0, 8000, 257) / 700)[:, None]
    rise, fall = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = torch.minimum(rise, fall).clamp(min=0)
    return weights * (torch.arange(257) > 0)[:, None]


def fad_clap(network: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
    """CLAP embeddings of the whole sound at 48 kHz -> (clips 1 d)."""
    made = []
    for clip in clips:
        wave = _wave(clip, 48000)
        if isinstance(network, tuple):
            model, processor = network
            found = model.get_audio_features(**processor(wave[0].numpy(), sampling_rate=48000, return_tensors="pt"))
            made.append(found if isinstance(found, Tensor) else found.pooler_output)
        else:
            made.append(network(wave))
    return _array(made)


def imagebind_score(network: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> Floats:
    """Cosine of network.video (1 3 t 224 224) and network.audio (1 n) at 16 kHz -> (clips,)."""
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in (CLIP_MEAN, CLIP_STD))
    made = []
    for clip in clips:
        x = ((_pictures(clip, size=224) / 255 - mean) / std).transpose(0, 1)[None]  # 1 3 t h w
        made.append(float(F.cosine_similarity(network.video(x), network.audio(_wave(clip, 16000)), dim=-1).mean()))
    return np.array(made, np.float32)


def _call(network: Any, x: Tensor, **options: bool) -> Tensor:
    """Call with those options that the network's forward knows."""
    known = {argument.name for argument in network.forward.schema.arguments}
    found: Tensor = network(x, **{name: value for name, value in options.items() if name in known})
    return found


def _plain(x: Tensor) -> Floats:
    return np.asarray(x.detach().float().reshape(x.shape[0], -1).numpy(), np.float32)


def _array(parts: Sequence[Tensor]) -> Floats:
    """One (1 d) a clip -> (clips 1 d)."""
    return np.stack([_plain(part) for part in parts])


PROTOCOLS: Mapping[str, Protocol] = {
    "fvd": Protocol(
        ("video",), 2048,
        "FVD (Unterthiner et al. 2018) as in StyleGAN-V: TorchScript I3D (Kinetics-400, logits), 16 evenly spaced "
        "frames, bilinear to 224x224 without antialiasing, range [-1, 1], 2,048 clips",
        fvd, True,
    ),
    "fid": Protocol(
        ("video",), 10_000,
        "FID (Heusel et al. 2017): TorchScript Inception-v3 of 2015-12-05, pool features, uint8 pictures that the "
        "network resizes itself, the middle frame of each clip, 10,000 to 50,000 pictures",
        fid, True,
    ),
    "fad_vggish": Protocol(
        ("audio",), 1000,
        "FAD (Kilgour et al. 2019): TorchScript VGGish before its PCA, 16 kHz mono, patches of .96 s without overlap",
        fad_vggish, True,
    ),
    "fad_clap": Protocol(
        ("audio",), 1000,
        "FAD-CLAP (Gui et al. 2024): CLAP audio embeddings of whole sounds at 48 kHz mono; TorchScript (1 n) -> (1 d), "
        "or a Hugging Face folder; not the AudioCLIP x 10^4 that MM-Diffusion and JavisBench call FAD",
        fad_clap, True,
    ),
    "clip_score": Protocol(
        ("video",), 1000,
        "CLIP score (Hessel et al. 2021) scaled to 100 max(cos, 0), mean of 8 evenly spaced frames, the processor's "
        "own preprocessing; a Hugging Face folder with safetensors",
        clip_score, False,
    ),
    "imagebind_score": Protocol(
        ("video", "audio"), 1000,
        "ImageBind score (Girdhar et al. 2023): cosine of picture and sound embeddings; TorchScript with the methods "
        "video (b 3 t 224 224), CLIP-normalised, and audio (b n) at 16 kHz, whose own front end makes the mel picture",
        imagebind_score, False,
    ),
}  # fmt: skip
