"""Encoding: the same bytes whoever works and whatever is killed, and a training that cannot tell latents from files."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff import build
from mmdiff.ablate.budget import measure
from mmdiff.data import media
from mmdiff.data.loader import gather, loader
from mmdiff.encode import Job, encode, executors, ledger
from mmdiff.encode.job import bench
from mmdiff.errors import UserError

torch.set_num_threads(1)
CLIPS, EVENTS = 10, ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.utime")


def make_clips(folder: Path) -> Path:
    """Ten clips of noise with sound and two captions each, one file that is no clip, and a config."""
    data = folder / "data"
    data.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    for i in range(CLIPS):
        video = (torch.rand(10, 16, 16, 3, generator=draw) * 255).to(torch.uint8)
        sound = torch.rand(1, 10000, generator=draw) - 0.5
        media.write_clip(data / f"{i}.mp4", video, fps=8, audio=sound, rate=8000)
        (data / f"{i}.txt").write_text(f"clip {i}\nnumber {i}\n")
    (data / "x.mp4").write_bytes(b"no clip")
    tree = build.read("configs/sounding_objects/smoke.yaml", [f"data.path={data}", "prepare=null", "batch=5"])
    config = folder / "config.yaml"
    tree["data"]["window"] = "random"
    tree["system"]["video"]["components"] = tree["system"]["denoiser"]["net"]["video"]["channels"] = 8
    tree["system"]["audio"]["components"] = tree["system"]["denoiser"]["net"]["audio"]["channels"] = 8
    config.write_text(build_text(tree))
    return config


def build_text(tree: dict) -> str:
    from mmdiff.config import dump

    return dump(tree)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def job(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A finished job."""
    done = Job(source=str(config), out=str(tmp_path_factory.mktemp("clean") / "out"), shard_size=4, batch=3, views=2)
    encode(done, show=False)
    return done


def tree_of(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def forked(act: Callable[[], object]) -> int:
    """Do it in a child -> its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def doomed(job: Job, after: int) -> None:
    """Do the job and be killed at the file operation number `after` in its folder."""
    seen = 0

    def count(event: str, args: tuple) -> None:
        nonlocal seen
        if event in EVENTS and str(args[0]).startswith(job.out):
            seen += 1
            if seen == after:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    encode(job, show=False)


# ---- the protocol --------------------------------------------------------------------------------------------------


def test_killed_at_every_file_operation_and_started_again_the_bytes_are_the_same(job, tmp_path, monkeypatch):
    wanted, kills = tree_of(job.out), 0
    for after in range(1, 1000):
        here = replace(job, out=str(tmp_path / "out"))
        code = forked(lambda: doomed(here, after))  # noqa: B023
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
        if after % 10 == 0:  # otherwise the next one goes on from what this one left
            assert forked(lambda: encode(here, show=False)) == 0  # noqa: B023
            assert tree_of(here.out) == wanted
            shutil.rmtree(here.out)
    assert kills > 20 and tree_of(here.out) == wanted


def test_two_at_once_give_the_same_bytes(job, tmp_path):
    here = replace(job, out=str(tmp_path / "out"))
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                encode(here, show=False)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    assert tree_of(here.out) == tree_of(job.out)


def test_a_claim_is_one_workers_until_its_owner_is_gone(tmp_path):
    piece, claim = tmp_path / "00000", tmp_path / "00000.claim"
    with ledger.claimed(piece) as first, ledger.claimed(piece) as second:
        assert first and not second
    assert not claim.exists()
    claim.write_text('{"host": "elsewhere", "pid": 1}')
    with ledger.claimed(piece) as ours:
        assert not ours
    os.utime(claim, (0, 0))
    (tmp_path / "00000-a.safetensors.tmp-1").touch()
    with ledger.claimed(piece) as ours:
        assert ours and sorted(p.name for p in tmp_path.iterdir()) == ["00000.claim"]


def test_a_slurm_array_gives_the_same_bytes(job, tmp_path, monkeypatch):
    here = replace(job, out=str(tmp_path / "out"))
    for task in range(3):
        for name, value in (("ID", task + 5), ("MIN", 5), ("COUNT", 3)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        told = encode(here, executor="slurm", show=False)
        assert ("left to other tasks" in told[-1]) == (task < 2)
    assert tree_of(here.out) == tree_of(job.out)
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    with pytest.raises(UserError, match="sbatch"):
        executors.share([("train", 0)])


def test_ray_gives_the_same_bytes(job, tmp_path, monkeypatch):
    class Rows(list):
        def map(self, call, concurrency):
            return Rows(map(call, self))

        def iter_rows(self):
            return iter(self)

    class Data:
        from_items = staticmethod(lambda rows, override_num_blocks: Rows(rows))

    here = replace(job, out=str(tmp_path / "out"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install"):
        encode(here, executor="ray", show=False)
    fake = type(sys)("ray")
    fake.data = Data  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    encode(here, executor="ray", show=False)
    assert tree_of(here.out) == tree_of(job.out)


# ---- what is stale, what is damaged --------------------------------------------------------------------------------


@pytest.fixture
def copied(config: Path, tmp_path: Path) -> Job:
    """A finished job with sources of its own."""
    own = make_clips(tmp_path / "own")
    made = Job(source=str(own), out=str(tmp_path / "out"), shard_size=4)
    encode(made, show=False)
    bench.cache_clear()
    return made


def test_a_changed_source_is_named_and_old_shards_stay(copied):
    before = tree_of(copied.out)
    data = Path(copied.source).parent / "data"
    shutil.copy(data / "1.mp4", data / "2.mp4")
    told = "\n".join(encode(copied, show=False))
    assert "1 made now" in told and "stale: 1 clips" in told and "2.mp4" in told
    after = tree_of(copied.out)
    assert before.items() <= after.items() and len(after) == len(before) + 2
    with pytest.raises(UserError, match="2 indices"):
        build.make(build.read(copied.source, [f"data.latents={copied.out}"])["data"])


def test_other_weights_and_other_recipes_are_refused_by_name(copied):
    path = Path(copied.out) / "codecs.safetensors"
    tree = build.read(copied.source, [f"data.latents={copied.out}"])
    data, system = build.make(tree["data"]), build.make_system(build.parse(tree))
    data.lend(system)
    data.check(system)
    system.autoencoders["video"].components.scale[0] += 1e-3
    with pytest.raises(UserError, match="autoencoder of video"):
        data.check(system)
    with pytest.raises(UserError, match=r"data\.fps is 7"):
        build.make({**tree["data"], "fps": 7})
    with pytest.raises(UserError, match="no split 'test'"):
        build.make({**tree["data"], "split": "test"})
    with pytest.raises(UserError, match="dtype: 'float32' -> 'float16'"):
        encode(replace(copied, dtype="float16"), show=False)
    state = load_file(path)
    save_file({**state, "video.components.mean": state["video.components.mean"] + 1}, path)
    bench.cache_clear()
    with pytest.raises(UserError, match=r"codecs\.video"):
        encode(copied, show=False)


def test_a_flipped_bit_has_a_name_and_is_mended(copied):
    tree = build.read(copied.source, [f"data.latents={copied.out}"])
    shard = sorted((Path(copied.out) / "train").glob("00001-*.safetensors"))[0]
    sound = shard.read_bytes()
    shard.write_bytes(sound[:-3] + bytes([sound[-3] ^ 1]) + sound[-2:])
    data = build.make({**tree["data"], "split": "train"})
    with pytest.raises(UserError, match=shard.name):
        for position in range(len(data)):
            data[position]
    assert "1 made now" in encode(copied, show=False)[0]
    assert shard.read_bytes() == sound and shard.with_suffix(".corrupt").is_file()


# ---- training ------------------------------------------------------------------------------------------------------


def test_batches_of_latents_are_those_of_files(job):
    """Bit for bit but for the last digits that the number of clips encoded together decides."""
    files = build.read(job.source)
    system = build.make_system(build.parse(files))
    plain, stored = (build.make({**files["data"], "latents": latents}) for latents in (None, job.out))
    stored.lend(system)
    stored.check(system)
    n = len(plain)
    assert len(stored) == n and n >= CLIPS - 2
    for epoch in range(2):  # as many as there are views
        a, b = (gather(data, range(epoch * n, (epoch + 1) * n)) for data in (plain, stored))
        assert a["id"] == b["id"] and a["text"] == b["text"] and "video" not in b
        assert all(torch.equal(a["valid"][name], b["valid"][name]) for name in a["valid"])
        torch.testing.assert_close(system.encode(b), system.encode(a), rtol=1e-5, atol=1e-5)
        loss_a, loss_b = (system.loss(batch, seed=0, step=1)[0] for batch in (a, b))
        torch.testing.assert_close(loss_b, loss_a, rtol=1e-5, atol=1e-6)
    made = system.generate(gather(stored, [0]), seed=0, steps=2)
    assert made["video"].shape == (1, 3, 8, 16, 16) and made["audio"].shape == (1, 1, 8000)


def test_any_world_reads_the_same_latents(job):
    data = build.make({**build.read(job.source)["data"], "latents": job.out})
    plan = data.plan(4)
    one = [batch for _, (batch,) in loader(data, plan=plan, steps=3)]
    two = [[b for _, (b,) in loader(data, plan=plan, steps=3, rank=rank, world=2)] for rank in range(2)]
    for whole, first, second in zip(one, *two, strict=True):
        assert whole["id"] == first["id"] + second["id"]
        assert torch.equal(
            whole["latents"]["video"], torch.cat([first["latents"]["video"], second["latents"]["video"]])
        )


def save_text_encoder(folder: Path) -> None:
    """A random BERT of a few kilobytes that knows letters."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = {
        "<pad>": 0,
        "<s>": 1,
        "</s>": 2,
        **{c: 3 + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz0123456789")},
    }
    spelled = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    spelled.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    ends = [(name, letters[name]) for name in ("<s>", "</s>")]
    spelled.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    hf.PreTrainedTokenizerFast(tokenizer_object=spelled, pad_token="<pad>", unk_token="<pad>").save_pretrained(folder)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.BertForMaskedLM(hf.BertConfig(vocab_size=40, max_position_embeddings=32, **small)).save_pretrained(folder)


def test_frozen_text_and_first_frames_are_those_of_files(config, tmp_path, monkeypatch):
    """What a frozen encoder says of captions, and what a conditioner sees of clips, come from the shards."""
    save_text_encoder(tmp_path / "bert")
    text = {"kind": "hf_text", "path": str(tmp_path / "bert"), "width": 48, "length": 32}
    tree = build.read(config)
    speeds = {"kind": "motion_bucket", "width": 48}
    tree["system"]["conditioner"] = {
        "kind": "conditioners",
        "parts": [text, {"kind": "frame_tokens", "width": 48}, speeds],
    }
    own = tmp_path / "config.yaml"
    own.write_text(build_text(tree))
    encode(Job(source=str(own), out=str(tmp_path / "out"), batch=4), show=False)
    system = build.make_system(build.parse(tree))
    plain, stored = (build.make({**tree["data"], "latents": at}) for at in (None, str(tmp_path / "out")))
    stored.lend(system)
    stored.check(system)
    a, b = (gather(data, range(4)) for data in (plain, stored))
    conditioner = system.learner["conditioner"]
    seen = [dict(conditioner(a))]
    voice = next(part for part in conditioner.modules() if hasattr(part, "voice"))
    monkeypatch.setattr(type(voice), "say", lambda self, text: pytest.fail(f"{text!r} was encoded again"))
    seen.append(dict(conditioner(b)))
    assert seen[0].keys() == seen[1].keys() == {"tokens", "mask", "vector"}
    for route in seen[0]:
        torch.testing.assert_close(seen[1][route], seen[0][route], rtol=1e-5, atol=1e-5)
    system.loss(b, seed=0, step=1)  # drops captions: the empty one is there as well


def test_a_cell_on_latents_is_priced_with_the_codecs_that_made_them(job: Job, config: Path) -> None:
    on_files, on_latents = (measure(build.read(config, more)) for more in ([], [f"data.latents={job.out}"]))
    assert on_files.parameters == on_latents.parameters and on_latents.flops_a_step > 0
    other = build.read(config, [f"data.latents={job.out}", "system.audio.window=200"])
    with pytest.raises(UserError, match="data.latents"):
        measure(other)
