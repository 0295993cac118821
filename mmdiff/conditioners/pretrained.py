"""A frozen text encoder from elsewhere, and what it said of every caption so far.

The one idea: a caption's embedding is a function of the caption alone, so it is computed once and remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdiff.batch import Batch, Cond
from mmdiff.conditioners.text import ROUND, masked_mean, tell_cut
from mmdiff.errors import UserError
from mmdiff.layers.norm import rms_norm

REMEMBERED = 1 << 30  # bytes of embeddings that an encoder keeps


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

    @property
    def voice(self) -> str:
        """The name under which its words are kept where captions were encoded before (data/latents.py)."""
        return f"{self.path} in {self.dtype}, {self.length} tokens"

    def say(self, text: str) -> Tensor:
        """A caption's embeddings (l e), on the CPU."""
        return self.encoder(text, length=self.length, device=self.project.weight.device)

    def forward(self, batch: Batch) -> Cond:
        device = self.project.weight.device
        before = batch.get("embedded", {}).get(self.voice, {})
        found = [before[text] if text in before else self.say(text) for text in batch["text"]]  # b x (l e)
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
            self._told = self._told or tell_cut(text, f"{len(ids)} tokens", length)
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
