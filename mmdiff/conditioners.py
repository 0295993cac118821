"""What a network is told, made from what a clip is: Batch -> Cond, keyed by route (tokens, vector), never by source.

The one idea: there is no null embedding. The null condition is the same conditioner on the emptied batch, whose texts
are "": condition dropout, classifier-free guidance (Ho and Salimans 2022) and negative prompts are one mechanism.
"""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdiff.batch import Batch, Cond
from mmdiff.errors import UserError
from mmdiff.layers.attention import attention, heads_of, merge_heads
from mmdiff.layers.embed import sinusoid
from mmdiff.layers.norm import RMSNorm, rms_norm

Conditioner = Callable[[Batch], Cond]  # an nn.Module whose forward has this signature

PAD, BOS, FIRST = 0, 1, 2  # byte v is the symbol FIRST + v
SYMBOLS, PIECE = FIRST + 256, 8  # a piece of text is at most so many bytes
ROUND = 8  # token counts are multiples of this, so that few shapes occur
REMEMBERED = 1 << 30  # bytes of embeddings that a pretrained encoder keeps


# ---- the null condition --------------------------------------------------------------------------------------------


def emptied(batch: Batch) -> Batch:
    """The same clips with nothing said about them but the `negative` text, if the batch has one."""
    gone = dropped(batch, torch.ones(len(batch["text"]), dtype=torch.bool))
    return cast(Batch, {**gone, "text": batch["negative"]}) if "negative" in batch else gone


def dropped(batch: Batch, drop: Tensor) -> Batch:
    """The same clips, their text emptied where drop (b,) is True."""
    text = ["" if gone else text for text, gone in zip(batch["text"], drop.tolist(), strict=True)]
    return cast(Batch, {**batch, "text": text})


def isolated(batch: Batch) -> Batch:
    """The same clips, whose modalities do not hear of each other: the view without what a joint network couples."""
    return cast(Batch, {**batch, "valid": {name: torch.zeros_like(here) for name, here in batch["valid"].items()}})


# ---- merging -------------------------------------------------------------------------------------------------------


class Conditioners(nn.Module):
    """Several conditioners, merged route by route: tokens side by side, vectors added. None at all: unconditional."""

    def __init__(self, parts: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, batch: Batch) -> Cond:
        """tokens (b l d) and mask (b l) with l summed over the parts that give tokens; vector (b d)."""
        conds: list[Cond] = [part(batch) for part in self.parts]
        merged = Cond()
        if tokens := [c["tokens"] for c in conds if "tokens" in c]:
            _check_widths("tokens", tokens)
            merged["tokens"] = torch.cat(tokens, 1)
            merged["mask"] = torch.cat([_mask(c) for c in conds if "tokens" in c], 1)
        if vectors := [c["vector"] for c in conds if "vector" in c]:
            _check_widths("vector", vectors)
            merged["vector"] = torch.stack(vectors).sum(0)
        return merged


def _mask(cond: Cond) -> Tensor:
    tokens = cond["tokens"]
    return cond["mask"] if "mask" in cond else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def _check_widths(route: str, found: Sequence[Tensor]) -> None:
    widths = [x.shape[-1] for x in found]
    if len(set(widths)) > 1:
        raise UserError(f"conditioners: their {route} have widths {widths}, but only equal widths can be merged.")


# ---- text, learned with the model ----------------------------------------------------------------------------------


class Text(nn.Module):
    """A small transformer over pieces of the caption, trained with the model: any language, no vocabulary file.

    A piece is a space and the bytes of a word, PIECE at most (a longer word is several), and its embedding is the sum
    of its UTF-8 bytes in their places and a two-layer function of that sum: as exact as bytes, at an eighth of their
    number.
    tokens (b l width), mask (b l), vector (b width); l is the longest of the batch rounded up to a multiple of 8, at
    most `length`. The beginning is a token of its own, so the empty text is a text too. A caption that does not fit is
    cut between two pieces, and the first one is named in a warning.
    """

    def __init__(self, *, width: int, depth: int = 2, heads: int = 3, length: int = 64) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"text: width {width} is not a multiple of heads {heads}.")
        if length < ROUND or length % ROUND:
            raise UserError(f"text: length {length} is not a positive multiple of {ROUND}.")
        self.length = length
        self.bytes = nn.Embedding(PIECE * SYMBOLS, width)
        self.piece = nn.Sequential(RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.positions = nn.Embedding(length, width)
        self.positions.weight.data.mul_(0.1)  # at first a word says more than its place
        self.blocks = nn.ModuleList(TextBlock(width, heads) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.vector = nn.Linear(width, width)
        self._told = False

    def forward(self, batch: Batch) -> Cond:
        ids = self.ids(batch["text"]).to(self.positions.weight.device)  # (b l p)
        mask = (ids != PAD).any(-1)
        places = torch.arange(PIECE, device=ids.device) * SYMBOLS
        code = self.bytes(ids + places).sum(-2) / PIECE**0.5  # (b l d), nearly orthogonal for different words
        x = code + self.piece(code)
        x = x + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return Cond(tokens=x, mask=mask, vector=self.vector(masked_mean(x, mask)))

    def ids(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (b l p) int64: the beginning, then pieces of p bytes, padded."""
        rows = [[[BOS], *([FIRST + v for v in piece] for piece in self._pieces(text))] for text in texts]
        longest = -(-max(map(len, rows)) // ROUND) * ROUND
        full = [row + [[]] * (longest - len(row)) for row in rows]
        return torch.tensor([[piece + [PAD] * (PIECE - len(piece)) for piece in row] for row in full])

    def _pieces(self, text: str) -> list[bytes]:
        pieces, room = re.findall(rb" ?[^ ]{1,%d}| " % (PIECE - 1), text.encode(errors="replace")), self.length - 1
        if len(pieces) > room:
            self._told = self._told or _tell_cut(text, f"{len(pieces)} pieces", room)
        return pieces[:room]


class TextBlock(nn.Module):
    """Pre-norm self-attention, in which every real token sees every real token, then a feed-forward of ratio 4."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = RMSNorm(width), RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (b l d), mask (b l) -> (b l d)"""
        q, k, v = (heads_of(z, self.heads) for z in self.qkv(self.norm_attention(x)).chunk(3, -1))  # 3 x (b k l e)
        x = x + self.out(merge_heads(attention(q, k, v, mask=mask)))
        return x + self.mlp(self.norm_mlp(x))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of the real tokens: (b l d), (b l) -> (b d)."""
    weight = mask.to(x.dtype)[..., None]
    return (x * weight).sum(1) / weight.sum(1)


def _tell_cut(text: str, has: str, room: int) -> bool:
    """Warn that captions are being cut, naming this one -> True: it has been said."""
    warnings.warn(
        f"The caption {text[:60]!r}... has {has} and is cut to {room}, and so is every other that does not fit. "
        "Raise the conditioner's `length` if the rest matters.",
        stacklevel=4,
    )
    return True


# ---- text, by a pretrained encoder ---------------------------------------------------------------------------------


class HFText(nn.Module):
    """A frozen text encoder of `transformers` (T5, UMT5, CLIP, BERT and their like), then a learned projection.

    `path` is a local folder or a name on the hub; weights are read from safetensors only, and none of the model's own
    code is run. tokens (b l width), mask (b l), vector (b width); l as in `Text`, at most `length`. The encoder is no
    submodule: it is neither trained, nor averaged, nor saved with the run. Needs the extra `pretrained`.
    """

    def __init__(self, *, path: str, width: int, length: int = 128, dtype: str = "float32") -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16", "float16"):
            raise UserError(f"hf_text: dtype {dtype!r} must be float32, bfloat16 or float16.")
        self.path, self.length, self.dtype = path, length, dtype
        encoder = self.encoder
        if length > encoder.limit:
            raise UserError(f"hf_text: {path} reads at most {encoder.limit} tokens, but length is {length}.")
        self.project = nn.Linear(encoder.width, width)
        self.vector = nn.Linear(encoder.width, width)

    @property
    def encoder(self) -> Encoder:
        """The one copy in this process, whoever asks for it."""
        return _encoder(self.path, self.dtype)

    def forward(self, batch: Batch) -> Cond:
        device = self.project.weight.device
        found = [self.encoder(text, length=self.length, device=device) for text in batch["text"]]  # b x (l e)
        longest = min(-(-max(map(len, found)) // ROUND) * ROUND, self.length)
        x = torch.stack([nn.functional.pad(f, (0, 0, 0, longest - len(f))) for f in found]).to(device)  # (b l e)
        lengths = torch.tensor([len(f) for f in found], device=device)
        mask = torch.arange(longest, device=device) < lengths[:, None]  # (b l)
        x = rms_norm(x.float())  # encoders differ in scale by orders of magnitude
        return Cond(tokens=self.project(x), mask=mask, vector=self.vector(masked_mean(x, mask)))


class Encoder:
    """Caption -> embeddings, one caption at a time and remembered, so that they are a function of the caption alone.

    The memory is bounded by REMEMBERED bytes; the oldest captions leave it first.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        self.tokenizer, self.model = tokenizer, model
        config = getattr(model.config, "text_config", model.config)
        self.width: int = config.hidden_size
        self.limit: int = getattr(config, "max_position_embeddings", 1 << 20)
        self._memory: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._bytes, self._told = 0, False

    def __call__(self, text: str, *, length: int, device: torch.device) -> Tensor:
        """-> (l e) on the CPU, without padding, l at most `length`."""
        if (text, length) not in self._memory:
            self._remember((text, length), self._encode(self._ids(text, length), device))
        return self._memory[text, length]

    @torch.no_grad()
    def _encode(self, ids: Tensor, device: torch.device) -> Tensor:
        with torch.autocast(device.type, enabled=False):
            out = self.model.to(device)(input_ids=ids.to(device), attention_mask=torch.ones_like(ids, device=device))
        return out.last_hidden_state[0].cpu()

    def _ids(self, text: str, length: int) -> Tensor:
        ids = self.tokenizer(text, verbose=False).input_ids
        if len(ids) > length:
            self._told = self._told or _tell_cut(text, f"{len(ids)} tokens", length)
            ids = self.tokenizer(text, truncation=True, max_length=length).input_ids
        if not ids:
            raise UserError(
                f"hf_text: this tokenizer has no token for {text!r}, so it cannot express the empty caption."
            )
        return torch.tensor([ids])  # (1 l)

    def _remember(self, name: tuple[str, int], found: Tensor) -> None:
        self._memory[name] = found
        self._bytes += found.nbytes
        while self._bytes > REMEMBERED and len(self._memory) > 1:
            self._bytes -= self._memory.popitem(last=False)[1].nbytes


@lru_cache(maxsize=2)
def _encoder(path: str, dtype: str) -> Encoder:
    """Load tokenizer and encoder, and refuse anything that would leave a weight at random."""
    try:
        import transformers
    except ImportError:
        raise UserError("hf_text needs transformers: pip install 'mmdiff[pretrained]'.") from None
    folder = Path(path).expanduser()
    if not folder.is_dir() and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UserError(
            f"hf_text: there is no folder {path}. Give a folder with config.json and safetensors, or a hub name."
        )
    name = str(folder) if folder.is_dir() else path
    try:
        with torch.random.fork_rng(devices=[]):
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            clip = config.model_type == "clip"
            family = transformers.CLIPTextModel if clip else transformers.AutoModelForTextEncoding
            model, info = family.from_pretrained(name, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise UserError(
            f"hf_text: cannot load a text encoder from {path}: {str(error).strip().splitlines()[0]}"
        ) from None
    if missing := [key for key in info["missing_keys"] if "pooler" not in key]:
        raise UserError(f"hf_text: {path} lacks {len(missing)} weights of its encoder, such as {missing[0]}.")
    return Encoder(tokenizer, model.to(getattr(torch, dtype)).eval().requires_grad_(False))


# ---- numbers -------------------------------------------------------------------------------------------------------


class FrameRate(nn.Module):
    """The clip's frames per second as a vector (b width): a sinusoid of fps / 100, then two layers."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, batch: Batch) -> Cond:
        weight = cast(Tensor, self.mlp[0].weight)
        return Cond(vector=self.mlp(sinusoid(batch["fps"].to(weight.device) / 100, 64).to(weight.dtype)))
