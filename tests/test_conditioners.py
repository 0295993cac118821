"""A condition belongs to its caption: not to its neighbours in the batch, nor to the padding that they cause."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from mmdiff import noise
from mmdiff.batch import Batch, Cond
from mmdiff.conditioners import Conditioners, FrameRate, HFText, Text, dropped, emptied, pretrained
from mmdiff.errors import UserError

TEXTS = [
    "a red ball falls and bounces twice with a bell sound",
    "",
    "ein Würfel gleitet nach links",
    "赤いボールが落ちる 🔔",
]
WIDTH = 24


def batch(texts: list[str]) -> Batch:
    return Batch(text=texts, id=[str(i) for i in range(len(texts))], fps=torch.full((len(texts),), 8.0))


@pytest.fixture
def text() -> Text:
    with torch.random.fork_rng():
        torch.manual_seed(noise.key("test"))
        return Text(width=WIDTH, depth=2, heads=3, length=96)


def real(cond: Cond, i: int) -> torch.Tensor:
    return cond["tokens"][i][cond["mask"][i]]


# ---- text ----------------------------------------------------------------------------------------------------------


def test_shapes_and_bytes(text: Text) -> None:
    cond = text(batch(TEXTS))
    assert cond["tokens"].shape == (4, 16, WIDTH) and cond["vector"].shape == (4, WIDTH)
    assert cond["mask"].sum(1).tolist() == [12, 1, 6, 6]  # the beginning, and a piece for 7 bytes of a word
    row = text.ids(["é a"])[0]
    assert row[:3, :3].tolist() == [[1, 0, 0], [2 + 0xC3, 2 + 0xA9, 0], [2 + 0x20, 2 + 0x61, 0]] and row.shape == (8, 8)


def test_pieces_lose_nothing(text: Text) -> None:
    for caption in [*TEXTS, "  two  spaces ", "supercalifragilistic words\n"]:
        rows = text.ids([caption])[0]
        assert bytes(int(v) - 2 for v in rows.flatten() if v > 1) == caption.encode()


def test_padding_changes_nothing(text: Text) -> None:
    together = text(batch(TEXTS))
    for i, caption in enumerate(TEXTS):
        alone = text(batch([caption]))
        assert torch.allclose(real(together, i), real(alone, 0), atol=1e-6)
        assert torch.allclose(together["vector"][i], alone["vector"][0], atol=1e-6)


def test_a_permuted_batch_gives_permuted_conditions(text: Text) -> None:
    order = noise.permutation(4, key=1)
    straight, shuffled = text(batch(TEXTS)), text(batch([TEXTS[i] for i in order]))
    for route in ("tokens", "mask", "vector"):
        assert torch.allclose(straight[route][order].float(), shuffled[route].float(), atol=1e-6)  # type: ignore[literal-required]


def test_every_byte_matters_in_both_directions(text: Text) -> None:
    """Attention is bidirectional: a change at either end reaches the other."""
    base, first, last = (text(batch([t]))["tokens"][0] for t in ("a red ball", "b red ball", "a red balk"))
    assert ((base - first)[:4].abs().amax(-1) > 1e-5).all()
    assert ((base - last)[:4].abs().amax(-1) > 1e-5).all()


def test_gradient_reaches_every_weight_that_is_used(text: Text) -> None:
    cond = text(batch(TEXTS))
    (cond["tokens"][cond["mask"]].square().mean() + cond["vector"].square().mean()).backward()
    for name, weight in text.named_parameters():
        assert weight.grad is not None and weight.grad.abs().sum() > 0, name


def test_a_long_caption_is_cut_between_pieces_and_named_once(text: Text) -> None:
    with pytest.warns(UserWarning, match="a a a.*100 pieces.*95"):
        row = text.ids([" ".join("a" * 100)])[0]
    assert row.shape[0] == 96 and (row[:, 0] != 0).sum() == 96
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (text.ids([" ".join("b" * 99)])[0][:, 0] != 0).sum() == 96


def test_text_that_is_not_unicode_is_still_text(text: Text) -> None:
    assert text.ids(["\ud800 lone surrogate"]).shape == (1, 8, 8)


def test_text_refuses_shapes_that_cannot_be() -> None:
    with pytest.raises(UserError, match="25.*heads 3"):
        Text(width=25)
    with pytest.raises(UserError, match="length 100"):
        Text(width=24, length=100)


# ---- the null condition and merging --------------------------------------------------------------------------------


def test_emptied_and_dropped_touch_nothing_but_text(text: Text) -> None:
    full = batch(TEXTS)
    assert emptied(full)["text"] == [""] * 4 and full["text"] == TEXTS
    half = dropped(full, torch.tensor([True, False, False, True]))
    assert half["text"] == ["", TEXTS[1], TEXTS[2], ""] and half["fps"] is full["fps"] and half["id"] == full["id"]
    null = text(emptied(full))
    assert null["mask"].sum(1).tolist() == [1] * 4 and null["tokens"].isfinite().all()


def test_no_conditioner_is_unconditional() -> None:
    assert Conditioners([])(batch(TEXTS)) == {}
    assert Conditioners()(batch(TEXTS)) == {}


def test_merging_concatenates_tokens_and_adds_vectors(text: Text) -> None:
    other = FrameRate(width=WIDTH)
    cond, single = Conditioners([text, text, other])(batch(TEXTS)), text(batch(TEXTS))
    assert torch.equal(cond["tokens"], torch.cat([single["tokens"]] * 2, 1))
    assert torch.equal(cond["mask"], torch.cat([single["mask"]] * 2, 1))
    assert torch.allclose(cond["vector"], 2 * single["vector"] + other(batch(TEXTS))["vector"], atol=1e-6)
    with pytest.raises(UserError, match="24, 48"):
        Conditioners([text, Text(width=48)])(batch(TEXTS))


def test_merging_gives_a_mask_to_tokens_without_one() -> None:
    class Bare(nn.Module):
        def forward(self, batch: Batch) -> Cond:
            return Cond(tokens=torch.zeros(len(batch["text"]), 3, WIDTH))

    assert Conditioners([Bare()])(batch(TEXTS))["mask"].all()


def test_frame_rates_differ() -> None:
    part = FrameRate(width=WIDTH)
    clips = batch(["", ""])
    clips["fps"] = torch.tensor([8.0, 24.0])
    vector = part(clips)["vector"]
    assert vector.shape == (2, WIDTH) and not torch.allclose(vector[0], vector[1], atol=1e-3)


# ---- pretrained encoders -------------------------------------------------------------------------------------------


def save_tokenizer(folder: Path, *, special: str) -> None:
    """A word-level tokenizer of the test's own words, with the special tokens that the family expects."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *"a red ball falls and bounces twice with bell sound".split()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=special, special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_encoder(folder: Path, family: str) -> None:
    """A random model of a family, a few kilobytes large."""
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ends = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    t5 = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    make = {
        "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**t5)),
        "umt5": lambda: hf.UMT5EncoderModel(hf.UMT5Config(**t5)),
        "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(vocab_size=20, max_position_embeddings=32, **small)),
        "clip_text": lambda: hf.CLIPTextModel(hf.CLIPTextConfig(max_position_embeddings=32, **small, **ends)),
        "clip": lambda: hf.CLIPModel(
            hf.CLIPConfig(
                text_config={**small, **ends, "max_position_embeddings": 32},
                vision_config={**small, "image_size": 8, "patch_size": 4},
            )
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(noise.key("test"))
        make[family]().save_pretrained(folder)


FAMILIES = {
    "t5": "$A </s>",
    "umt5": "$A </s>",
    "bert": "<s> $A </s>",
    "clip_text": "<s> $A </s>",
    "clip": "<s> $A </s>",
}


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_tokenizer(path, special=FAMILIES[request.param])
    save_encoder(path, request.param)
    return path


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("only-t5")
    save_tokenizer(path, special=FAMILIES["t5"])
    save_encoder(path, "t5")
    return path


def test_pretrained_conditions_belong_to_their_caption(folder: Path) -> None:
    part = HFText(path=str(folder), width=WIDTH, length=32)
    together = part(batch(TEXTS))
    assert together["tokens"].shape == (4, 16, WIDTH) and together["vector"].shape == (4, WIDTH)
    assert together["mask"][1].sum() >= 1 and together["tokens"].isfinite().all()
    for i, caption in enumerate(TEXTS):
        pretrained._encoder.cache_clear()
        alone = part(batch([caption]))
        assert torch.allclose(real(together, i), real(alone, 0), atol=1e-6)
        assert torch.allclose(together["vector"][i], alone["vector"][0], atol=1e-6)


def test_pretrained_embeddings_are_the_model_s_own(t5: Path) -> None:
    import transformers as hf

    model, tokenizer = hf.T5EncoderModel.from_pretrained(t5).eval(), hf.AutoTokenizer.from_pretrained(t5)
    with torch.no_grad():
        want = model(**tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state[0]
    found = HFText(path=str(t5), width=8).encoder(TEXTS[0], length=32, device=torch.device("cpu"))
    assert torch.allclose(found, want, atol=1e-6)


def test_pretrained_encoder_is_frozen_and_not_saved(t5: Path) -> None:
    part = HFText(path=str(t5), width=8)
    assert sorted(part.state_dict()) == ["project.bias", "project.weight", "vector.bias", "vector.weight"]
    assert copy.deepcopy(part).encoder is part.encoder and not part.encoder.model.training
    cond = part(batch(TEXTS))
    (cond["tokens"].sum() + cond["vector"].sum()).backward()
    assert part.project.weight.grad is not None
    assert all(p.grad is None for p in part.encoder.model.parameters())


def test_pretrained_embeddings_are_remembered_within_bounds(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = HFText(path=str(t5), width=8).encoder
    pretrained._encoder.cache_clear()
    encoder = HFText(path=str(t5), width=8).encoder
    first = encoder(TEXTS[0], length=32, device=torch.device("cpu"))
    assert encoder(TEXTS[0], length=32, device=torch.device("cpu")) is first
    monkeypatch.setattr(pretrained, "REMEMBERED", 2 * first.nbytes)
    for i in range(8):
        encoder(f"{TEXTS[0]} {i}", length=32, device=torch.device("cpu"))
    assert encoder._bytes == sum(x.nbytes for x in encoder._memory.values()) <= 2 * first.nbytes
    assert encoder(TEXTS[0], length=32, device=torch.device("cpu")) is not first


def test_loading_an_encoder_leaves_the_initialisation_alone(t5: Path) -> None:
    weights = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(noise.key("test"))
            weights.append(HFText(path=str(t5), width=8).project.weight)
    pretrained._encoder.cache_clear()
    with torch.random.fork_rng():
        torch.manual_seed(noise.key("test"))
        weights.append(HFText(path=str(t5), width=8).project.weight)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_pretrained_long_captions_are_cut_and_named(t5: Path) -> None:
    pretrained._encoder.cache_clear()
    part = HFText(path=str(t5), width=8, length=8)
    with pytest.warns(UserWarning, match="a red.*tokens.*8"):
        cond = part(batch(["a red ball " * 10]))
    assert cond["tokens"].shape == (1, 8, 8) and cond["mask"].all()


def test_pretrained_bfloat16(t5: Path) -> None:
    fine = HFText(path=str(t5), width=8).encoder(TEXTS[0], length=32, device=torch.device("cpu"))
    rough = HFText(path=str(t5), width=8, dtype="bfloat16").encoder(TEXTS[0], length=32, device=torch.device("cpu"))
    assert rough.dtype == torch.bfloat16 and torch.allclose(rough.float(), fine, atol=0.05, rtol=0.05)


def test_pretrained_errors_say_what_to_do(t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no folder /nowhere/t5"):
        HFText(path="/nowhere/t5", width=8)
    with pytest.raises(UserError, match="cannot load"):
        HFText(path=str(tmp_path), width=8)
    with pytest.raises(UserError, match="dtype"):
        HFText(path=str(t5), width=8, dtype="int8")
    bert = tmp_path / "bert"
    save_tokenizer(bert, special="<s> $A </s>")
    save_encoder(bert, "bert")
    with pytest.raises(UserError, match="at most 32.*128"):
        HFText(path=str(bert), width=8)
    monkeypatch.setitem(sys.modules, "transformers", None)
    pretrained._encoder.cache_clear()
    with pytest.raises(UserError, match="pretrained"):
        HFText(path=str(t5), width=8)


def test_weights_outside_safetensors_are_refused(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, special="$A </s>")
    save_encoder(tmp_path, "t5")
    (tmp_path / "model.safetensors").unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load"):
        HFText(path=str(tmp_path), width=8)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_tokenizer(tmp_path, special="$A </s>")
    save_encoder(tmp_path, "umt5")
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith("SelfAttention.q.weight"))
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks 1 weights"):
        HFText(path=str(tmp_path), width=8)
