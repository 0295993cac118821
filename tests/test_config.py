"""Configs: bases, overrides, references to own keys alone, and files from strangers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdiff import kinds
from mmdiff.config import dump, overlay, read, spelt, spoken
from mmdiff.errors import UserError
from mmdiff.parts import PARTS


def write(folder: Path, name: str = "x.yaml", text: str = "") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# ---- overlay -------------------------------------------------------------------------------------------------------


def test_mappings_merge_and_all_else_is_replaced() -> None:
    under = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert overlay(under, {"a": {"c": [5]}, "e": None}) == {"a": {"b": 1, "c": [5]}, "d": 3, "e": None}
    assert under == {"a": {"b": 1, "c": [1, 2]}, "d": 3}


def test_another_kind_replaces_the_node() -> None:
    under = {"kind": "ddpm", "steps": 100, "inner": {"kind": "x", "y": 1}}
    assert overlay(under, {"kind": "edm"}) == {"kind": "edm"}
    assert overlay(under, {"kind": "ddpm", "first": 1}) == {**under, "first": 1}
    assert overlay(under, {"inner": {"kind": "z"}}) == {**under, "inner": {"kind": "z"}}
    assert overlay({"a": 1}, {"kind": "edm"}) == {"a": 1, "kind": "edm"}


# ---- files and their bases -----------------------------------------------------------------------------------------


def test_a_base_is_relative_to_its_file(tmp_path: Path) -> None:
    write(tmp_path, "top.yaml", "a: {b: 1, c: 2}\nlist: [1, 2]\n")
    write(tmp_path, "sub/middle.yaml", "base: ../top.yaml\na: {c: 3}\nd: 4\n")
    low = write(tmp_path, "sub/deep/low.yaml", "base: ../middle.yaml\nlist: [9]\n")
    assert read(low) == {"a": {"b": 1, "c": 3}, "list": [9], "d": 4}


def test_a_base_that_comes_back_is_named(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    write(tmp_path, "b.yaml", "base: ./a.yaml\n")
    with pytest.raises(UserError, match="a.yaml is its own base, by way of .*a.yaml -> .*b.yaml"):
        read(tmp_path / "a.yaml")


def test_missing_files_are_named_with_their_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "joint.yaml", "base: nowhere.yaml\n")
    with pytest.raises(UserError, match="There is no config .*jiont.yaml. Beside it are: joint.yaml"):
        read(tmp_path / "jiont.yaml")
    with pytest.raises(UserError, match="There is no config .*nowhere.yaml"):
        read(tmp_path / "joint.yaml")
    with pytest.raises(UserError, match="There is no config"):
        read(tmp_path / "no" / "folder.yaml")
    with pytest.raises(UserError, match="There is no config"):
        read(tmp_path)


def test_scientific_numbers_are_numbers(tmp_path: Path) -> None:
    assert read(write(tmp_path, text="a: 1e-3\nb: 5E2\nc: 1_0\n"), ["d=3e-4"]) == {
        "a": 1e-3,
        "b": 500.0,
        "c": 10,
        "d": 3e-4,
    }


# ---- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_are_laid_over_the_file_in_order(tmp_path: Path) -> None:
    file = write(tmp_path, text="a: {b: 1, c: 2}\nkind: x\n")
    assert read(file, ["a.b=5", "a.d=[1, 2]", "e=null", "a.b=6", "f=x=y"]) == {
        "a": {"b": 6, "c": 2, "d": [1, 2]},
        "kind": "x",
        "e": None,
        "f": "x=y",
    }
    file = write(tmp_path, text="p: {kind: ddpm, steps: 10}\n")
    assert read(file, ["p.kind=edm", "p.rho=5"]) == {"p": {"kind": "edm", "rho": 5}}
    assert read(file, ["q=${p.steps}"])["q"] == 10


@pytest.mark.parametrize("item", ["steps", "=1", "a..b=1", "a.=1", "a[0]=1", "a b=1", "--steps=3", "a\n=1", ""])
def test_overrides_that_are_none_are_named(tmp_path: Path, item: str) -> None:
    with pytest.raises(UserError, match="must look like key=value"):
        read(write(tmp_path, text="a: 1\n"), [item])


@pytest.mark.parametrize("item", ["a=[1", "a={b", "a=!!python/name:os.system", "a=${b", "a=${oc.env:HOME}", "a='"])
def test_values_that_are_none_are_named(tmp_path: Path, item: str) -> None:
    with pytest.raises(UserError, match="a"):
        read(write(tmp_path, text="a: 1\n"), [item])


# ---- references ----------------------------------------------------------------------------------------------------


def test_references_are_values_or_text(tmp_path: Path) -> None:
    text = "data: {fps: 8, size: [4, 6], name: ball}\na: ${data.fps}\nb: ${data.size}\nc: runs/${data.name}-${a}\n"
    tree = read(write(tmp_path, text=text))
    assert (tree["a"], tree["b"], tree["c"]) == (8, [4, 6], "runs/ball-8")
    assert tree["b"] is not tree["data"]["size"]


def test_references_see_bases_and_overrides(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "fps: 8\nshape: {fps: '${fps}'}\n")
    assert read(write(tmp_path, text="base: base.yaml\nfps: 12\n"))["shape"]["fps"] == 12
    assert read(tmp_path / "x.yaml", ["fps=24"])["shape"]["fps"] == 24


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: ${nope}", "a refers to nope, but there is no such key"),
        ("a: {b: '${a.c}'}", "a.b refers to a.c"),
        ("a: [1, '${a.0}']", r"a\[1\] refers to a.0"),
        ("a: ${b}\nb: ${a}", "refers to itself"),
        ("a: {b: '${a}'}", "refers to itself"),
        ("a: ${oc.env:HOME}", "no reference"),
        ("a: ${ oc.env : HOME }", "no reference|not a config"),
        ("x: 1\na: ${x}${oc.env:HOME}", "no reference"),
        ("x: 1\na: [{b: '${x}/${oc.decode:1}'}]", r"a\[0\].b"),
        ("x: y\ny: 1\na: ${${x}}", "no reference"),
        ("a: {b: 1, c: '${.b}'}\n", "refers to .b"),
        ("a: ${b", "not a config"),
        ("a: ???", "a has to be chosen: give a=VALUE"),
        ("a: {b: '???'}\nc: ${a.b}", "a.b has to be chosen"),
    ],
)
def test_references_that_are_none_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(write(tmp_path, text=text))
    assert "x.yaml" in str(caught.value) and "/root" not in str(caught.value).replace(str(tmp_path), "")


def test_an_override_gives_what_has_to_be_chosen(tmp_path: Path) -> None:
    assert read(write(tmp_path, text="a: {b: '???'}\nc: ${a.b}\n"), ["a.b=3"]) == {"a": {"b": 3}, "c": 3}


# ---- files from strangers ------------------------------------------------------------------------------------------

HOSTILE = {
    "python object": "a: !!python/object/apply:os.system ['touch hacked']\n",
    "python name": "a: !!python/name:os.system\n",
    "python module": "!!python/module:os\n",
    "unknown tag": "a: !run x\n",
    "a billion laughs": "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
    "laughing keys": "a0: &a0 {x: 1, y: 1}\n"
    + "".join(f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 40)),
    "laughing references": "a0: [1, 1]\n"
    + "".join(f"a{i}: ['${{a{i - 1}}}', '${{a{i - 1}}}']\n" for i in range(1, 40)),
    "laughing text": "a0: ha\n" + "".join(f"a{i}: '${{a{i - 1}}}${{a{i - 1}}}'\n" for i in range(1, 40)),
    "long text many times": f"a: {'x' * 60000}\nb: [{', '.join(['y${a}'] * 2000)}]\n",
    "recursive alias": "a: &a [*a]\n",
    "deep lists": "a: " + "[" * 50000 + "]" * 50000,
    "deep mappings": "a: " + "{x: " * 20000 + "1" + "}" * 20000,
    "deep blocks": "\n".join(" " * i + "a:" for i in range(400)),
    "a chain of references": "a0: 1\n" + "".join(f"a{i}: ${{a{i - 1}}}\n" for i in reversed(range(1, 3000))),
    "a tower of references": "a0: {x: 1}\n" + "".join(f"a{i}: {{x: '${{a{i - 1}}}'}}\n" for i in range(1, 3000)),
    "a million keys": "".join(f"k{i}: 1\n" for i in range(1_000_000)),
    "many keys": "".join(f"k{i}: 1\n" for i in range(11_000)),
    "one long number": "a: " + "9" * 100_000,
    "equal keys": "a: 1\na: 2\n",
    "a list as key": "? [1, 2]\n: 3\n",
    "a number as key": "1: 2\n",
    "nothing as key": "null: 2\n",
    "a set": "a: !!set {x}\n",
    "a list": "- 1\n- 2\n",
    "two documents": "a: 1\n---\na: 2\n",
    "a base that is a list": "base: [x]\n",
    "a base that is a number": "base: 5\n",
    "control characters": "a: \x00\n",
    "tabs": "a:\n\t- 1\n",
    "half a quote": "a: 'x\n",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_are_refused_quickly(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path, text=HOSTILE[name])
    start = time.process_time()
    with pytest.raises(UserError, match="x.yaml") as caught:
        read(file)
    assert time.process_time() - start < 2
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert not (tmp_path / "hacked").exists()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"a: \xff\xfe\x81\n")
    with pytest.raises(UserError, match="x.yaml is not a config in YAML"):
        read(file)


# ---- there and back ------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=6)
NAMES = st.from_regex(r"[a-z_]{1,5}", fullmatch=True).filter(
    lambda name: name not in ("base", "y", "n", "on", "off", "no", "yes", "null", "true", "false")
)


@given(
    st.dictionaries(
        NAMES,
        st.recursive(
            SCALARS.filter(lambda x: not isinstance(x, str) or ("$" not in x and x != "???")),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    )
)
def test_a_resolved_config_comes_back(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> None:
    file = tmp_path_factory.mktemp("there") / "x.yaml"
    file.write_text(dump(tree), encoding="utf-8")
    assert read(file) == tree


@pytest.mark.parametrize(
    "text", ["1e5", "1_0", "null", "yes", "0x1", "~", "", " ", "a: b", "#", "\x85", "\u2028", "球", "🔔"]
)
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    tree = {"a": text, "b": [text, {"c": text}], "d": 1e-5, "e": 10}
    assert read(write(tmp_path, text=dump(tree))) == tree


def test_a_dump_repeats_what_is_shared() -> None:
    size = [4, 6]
    assert "*" not in dump({"a": size, "b": size})


def test_an_override_of_a_kind_keeps_what_the_other_kind_takes_too(tmp_path: Path, capsys: Any) -> None:
    file = write(tmp_path, text="p: {kind: dit, channels: 4, width: 8, heads: 2}\noptimizer: {kind: muon, lr: 0.1}\n")
    assert kinds.read(file, ["optimizer.kind=adamw"]) == {**read(file), "optimizer": {"kind": "adamw", "lr": 0.1}}
    assert capsys.readouterr().err == ""
    assert kinds.read(file, ["p.kind=unet"])["p"] == {"kind": "unet", "channels": 4, "heads": 2}
    assert capsys.readouterr().err == "p.kind=unet leaves out width of dit\n"
    assert kinds.read(file, ["p={kind: unet, groups: 4}"])["p"] == {"kind": "unet", "groups": 4}
    assert kinds.read(file, ["p.kind=nonsense"])["p"] == {"kind": "nonsense"}


@pytest.mark.parametrize("kind", PARTS)
def test_every_kind_tells_which_keys_it_takes(kind: str) -> None:
    assert not kinds.takes("p", kind, "no such key") and kinds.takes("optimizer", kind, "lr")


@pytest.mark.parametrize("choice", [2.5, "heun", {"kind": "churn", "amount": 20, "low": 0.1}])
def test_a_part_is_spelt_as_it_is_spoken(choice: object) -> None:
    assert spoken(spelt(choice)) == choice
