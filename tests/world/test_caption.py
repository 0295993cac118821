"""`parse` gives back the stated facts of every template, and the template splits share no wording."""

from __future__ import annotations

import pytest

from mmdiff import noise
from mmdiff.errors import UserError
from mmdiff.world.caption import SHORT, TEMPLATES, captions, parse
from mmdiff.world.clip import make_clip
from mmdiff.world.scene import BINDINGS, TIERS, ObjectFacts, sample_scene, truth

CPU = TIERS["cpu"]


@pytest.mark.parametrize("wording", ["train", "val", "para"])
@pytest.mark.parametrize("split", ["train", "comp", "count"])
def test_parse_is_exact_for_every_template(wording: str, split: str) -> None:
    for i in range(400):
        scene = sample_scene(seed=5, index=i, split=split, tier=CPU, binding=BINDINGS[i % 3])
        for said in captions(scene, seconds=2.0, key=noise.key(i), template_split=wording):
            assert parse(said.text) == said.facts, said.text


def test_stated_facts_are_true_and_the_first_caption_states_all() -> None:
    for i in range(300):
        scene = sample_scene(seed=1, index=i, split="train", tier=CPU)
        full = truth(scene, 2.0)
        by_colour = {one.colour: one.to_json() for one in full}
        said = captions(scene, seconds=2.0, key=i)
        assert said[0].facts == full
        for one in [one for caption in said for one in caption.facts]:
            assert all(value in (None, by_colour[one.colour][name]) for name, value in one.to_json().items())


def test_captions_of_one_object_are_short_and_all_templates_are_used() -> None:
    texts = []
    for i in range(1500):
        scene = sample_scene(seed=2, index=i, split="train", tier=CPU)
        if len(scene.objects) == 1:
            texts += [said.text for said in captions(scene, seconds=2.0, key=i)]
    assert max(len(text.encode()) for text in texts) <= 96
    for mark in (
        "is dropped",
        "drops to",
        "is pushed",
        "moves",
        "does not move",
        "with a",
        "making a",
        "2 times",
        "twice",
    ):
        assert any(mark in text for text in texts), mark


def test_no_template_is_in_two_splits() -> None:
    said = {
        split: {t for group in TEMPLATES[split].values() for t in group} | set(SHORT[split].values()) for split in SHORT
    }
    assert not said["train"] & said["val"] and not said["train"] & said["para"] and not said["val"] & said["para"]


def test_paraphrases_are_made_of_words_that_train_has_seen() -> None:
    def words(split: str, wording: str) -> set[str]:
        scenes = [sample_scene(seed=0, index=i, split=split, tier=CPU) for i in range(300)]
        found = [
            said.text for i, s in enumerate(scenes) for said in captions(s, seconds=2.0, key=i, template_split=wording)
        ]
        return {word.strip(",;:") for text in found for word in text.split()}

    assert words("para", "para") - words("train", "train") <= {"hit", "as", "of"}


def test_what_binding_says_about_sound() -> None:
    for i in range(100):
        text, never = (
            sample_scene(seed=0, index=i, split="train", tier=CPU, binding=b) for b in ("by_material_text", "random")
        )
        audible = {one.colour for one in truth(text, 2.0) if one.timbre}
        for said in captions(text, seconds=2.0, key=i):
            assert all((one.timbre is not None) == (one.colour in audible) for one in said.facts)
        for said in captions(never, seconds=2.0, key=i):
            assert all(one.timbre is None for one in said.facts)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            "a red ball falls and bounces twice with a bell sound",
            [ObjectFacts("red", "circle", None, "drop", None, 2, "bell")],
        ),
        (
            "A big Blue box slides to the left and a tiny cyan triangle stays still.",
            [
                ObjectFacts("blue", "square", "large", "slide", "left", None, None),
                ObjectFacts("cyan", "triangle", "small", "still", None, None, None),
            ],
        ),
    ],
)
def test_what_people_write(text: str, facts: list[ObjectFacts]) -> None:
    assert parse(text) == tuple(facts)


@pytest.mark.parametrize(
    ("text", "missing"),
    [("", "empty"), ("a purple ball falls", "colour"), ("a red cat falls", "shape"), ("a red ball sings", "motion")],
)
def test_what_this_world_cannot_say_is_named(text: str, missing: str) -> None:
    with pytest.raises(UserError, match=missing):
        parse(text)


def test_a_clip_is_a_function_of_its_arguments() -> None:
    one, two = (make_clip(seed=0, index=3, split="para", tier=CPU) for _ in range(2))
    assert (one.video == two.video).all() and (one.audio == two.audio).all() and one.captions == two.captions
    assert one.captions[0].facts == parse(one.captions[0].text) and len(one.captions) == 4
