"""GQA: compositional questions with programs over the scene's objects; balanced train, val and testdev, and all train
questions as a directory of two shards."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from vlmix.builders.miniature import ids, texts
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record
from vlmix.builders.miniature.scenes import COLORS, KINDS, Scene, Thing
from vlmix.builders.miniature.stock import gqa_scene

Step = tuple[str, str]
"""operation, argument"""


@dataclass(frozen=True, slots=True)
class Draft:
    question: str
    answer: str
    steps: list[Step]
    structural: str
    semantic: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """Drafts questions about one scene; the objects of its programs have consecutive ids."""

    scene: Scene
    first_object: int
    rng: Random

    def named(self, kind: str, thing: Thing) -> str:
        """An argument with an object's id, "ball (7)"."""
        return f"{kind} ({self.first_object + self.scene.things.index(thing)})"

    def select(self, thing: Thing) -> list[Step]:
        """The program that finds one thing: by kind, with a colour filter where the kind alone is ambiguous."""
        steps: list[Step] = [("select", self.named(thing.kind, thing))]
        if not self.alone(thing):
            steps.append(("filter color", thing.color))
        return steps

    def alone(self, thing: Thing) -> bool:
        """True when no other thing is of its kind."""
        return len(texts.kin(self.scene, thing.kind)) == 1

    def color(self, thing: Thing) -> Iterator[Draft]:
        """Query, verify (one true or false) and choose the colour of a thing that is alone of its kind."""
        if not self.alone(thing):
            return
        kind, color, steps = thing.kind, thing.color, self.select(thing)
        wrong = texts.other_than(self.rng, list(COLORS), color)
        asked = color if self.rng.random() < 0.5 else wrong
        one, two = self.rng.sample((color, wrong), 2)
        query, verify = ("query", "color"), ("verify color", asked)
        yield Draft(f"What color is the {kind}?", color, [*steps, query], "query", "attr", "color")
        yield Draft(f"Is the {kind} {asked}?", texts.yes_or_no(asked == color), [*steps, verify], "verify", "attr")
        choose = ("choose color", f"{one}|{two}")
        yield Draft(f"Is the {kind} {one} or {two}?", color, [*steps, choose], "choose", "attr", "color")

    def size(self, thing: Thing) -> Iterator[Draft]:
        """Verify size and colour together: a logical question."""
        if not self.alone(thing):
            return
        color = thing.color if self.rng.random() < 0.7 else texts.other_than(self.rng, list(COLORS), thing.color)
        size = thing.size if self.rng.random() < 0.7 else texts.other_than(self.rng, ["small", "large"], thing.size)
        answer = texts.yes_or_no(color == thing.color and size == thing.size)
        steps = [*self.select(thing), ("verify color", color), ("verify size", size), ("and", "")]
        yield Draft(f"Is the {thing.kind} {color} and {size}?", answer, steps, "logical", "attr")

    def position(self, thing: Thing) -> Iterator[Draft]:
        """Verify and choose the side of the picture, for things on the left or right."""
        where = texts.column(self.scene, thing)
        if where == "middle":
            return
        called, steps = texts.name(self.scene, thing), self.select(thing)
        asked = self.rng.choice(("left", "right"))
        verify, choose = ("verify hposition", asked), ("choose hposition", "left|right")
        question = f"Is the {called} on the {asked} of the image?"
        yield Draft(question, texts.yes_or_no(asked == where), [*steps, verify], "verify", "attr")
        question = f"Is the {called} on the left or on the right of the image?"
        yield Draft(question, where, [*steps, choose], "choose", "attr", "hposition")

    def related(self, thing: Thing) -> Iterator[Draft]:
        """ "What is to the left of the red ball?", where exactly one thing is."""
        called = texts.name(self.scene, thing)
        for words, holds in texts.RELATIONS:
            found = [other for other in self.scene.things if other != thing and holds(other, thing)]
            if len(found) != 1:
                continue
            answer = found[0]
            steps = [*self.select(thing), ("relate", self.named(f"_,{words},s", answer))]
            query = [*steps, ("query", "name")]
            yield Draft(f"What is {words} the {called}?", answer.kind, query, "query", "rel", "object")
            query = [*steps, ("query", "color")]
            question = f"What color is the object {words} the {called}?"
            yield Draft(question, answer.color, query, "query", "attr", "color")

    def verified_relation(self, thing: Thing, other: Thing) -> Iterator[Draft]:
        """ "Is the star above the tree?"."""
        asked = texts.relation_question(self.scene, self.rng, thing, other)
        if asked:
            question, words, truth = asked
            steps = [*self.select(other), ("relate", self.named(f"{thing.kind},{words},s", thing)), ("exist", "?")]
            yield Draft(question, texts.yes_or_no(truth), steps, "verify", "rel")

    def compared(self, thing: Thing, other: Thing) -> Iterator[Draft]:
        """ "Are the star and the tree the same color?"."""
        question = f"Are the {texts.name(self.scene, thing)} and the {texts.name(self.scene, other)} the same color?"
        steps = [*self.select(thing), *self.select(other), ("same color", "")]
        yield Draft(question, texts.yes_or_no(thing.color == other.color), steps, "compare", "attr")

    def existence(self) -> Iterator[Draft]:
        """Exist questions about two kinds, and about both of two."""
        present = sorted({thing.kind for thing in self.scene.things})
        there, absent = self.rng.choice(present), texts.other_than(self.rng, list(KINDS), set(present))
        for kind in (there, absent):
            found = self.named(kind, texts.kin(self.scene, kind)[0]) if kind in present else f"{kind} (-)"
            question = f"Is there {texts.article(kind)} in the picture?"
            yield Draft(
                question, texts.yes_or_no(kind in present), [("select", found), ("exist", "?")], "verify", "obj"
            )
        second = self.rng.choice(present if self.rng.random() < 0.5 else list(KINDS))
        if second != there:
            steps = [step for kind in (there, second) for step in (("select", f"{kind} (-)"), ("exist", "?"))]
            question = f"Are there both {texts.article(there)} and {texts.article(second)}?"
            yield Draft(question, texts.yes_or_no(second in present), [*steps, ("and", "")], "logical", "obj")

    def place(self) -> Iterator[Draft]:
        place, scene = self.scene.place, ("select", "scene")
        word = "indoors" if self.rng.random() < 0.5 else "outdoors"
        answer = texts.yes_or_no((place == "room") == (word == "indoors"))
        yield Draft("Which place is it?", place, [scene, ("query", "place")], "query", "global", "place")
        yield Draft(f"Is it {word}?", answer, [scene, ("verify location", word)], "verify", "global")

    def drafts(self) -> list[Draft]:
        """All questions in random order, each text once."""
        things = self.scene.things
        single = (self.color, self.size, self.position, self.related)
        found = [draft for make in single for thing in things for draft in make(thing)]
        for thing in things:
            for other in things:
                if thing != other:
                    found += self.verified_relation(thing, other)
                # Most pairs differ in colour; a part of them is enough.
                if texts.left_of(thing, other) and (thing.color == other.color or self.rng.random() < 0.4):
                    found += self.compared(thing, other)
        found += [*self.existence(), *self.place()]
        self.rng.shuffle(found)
        return list({draft.question: draft for draft in found}.values())


def image_questions(seed: int, part: str, index: int) -> dict[str, Record]:
    """All questions of one image by key: 1 to 20 balanced ones, then three that balancing dropped."""
    rng = Random(f"{seed}/gqa/{part}/{index}")
    drafts = Asker(gqa_scene(seed, part, index), 1_000_000 + 10 * index, rng).drafts()
    # Upstream: 13 per image on average, rarely below five.
    count = min(len(drafts) - 3, rng.choice((1, 4, 7, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20)))
    records = {}
    for number, draft in enumerate(drafts[: count + 3]):
        key = ids.gqa_question(part, index, number)
        if (part, index, number) == ("train", 1, 0):
            key = RECORD["gqa-leading-zero-twin"]
        records[key] = {
            "semantic": [{"operation": operation, "argument": argument} for operation, argument in draft.steps],
            "question": draft.question,
            "imageId": ids.gqa(part, index),
            "isBalanced": number < count,
            "groups": {"global": draft.group},
            "answer": draft.answer,
            "types": {"semantic": draft.semantic, "structural": draft.structural},
        }
    return records


def write_gqa(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    for part in ("train", "val", "testdev"):
        everything: dict[str, Record] = {}
        for index in range(sizes[f"gqa_{part}"]):
            everything |= image_questions(seed, part, index)
        if part == "train":
            everything[RECORD["gqa-global-null"]]["groups"]["global"] = None
            everything[RECORD["gqa-argument-space"]]["semantic"][-1]["argument"] += " "
            items = list(everything.items())
            for shard, chunk in enumerate((items[: len(items) // 2], items[len(items) // 2 :])):
                folder.json(f"gqa/train_all_questions/train_all_questions_{shard}.json", dict(chunk), len(chunk))
        balanced = {key: record for key, record in everything.items() if record["isBalanced"]}
        folder.json(f"gqa/{part}_balanced_questions.json", balanced, len(balanced))
