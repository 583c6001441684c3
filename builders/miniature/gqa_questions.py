"""Compositional questions in GQA's manner, each with its program over the scene's objects."""

from collections.abc import Callable
from random import Random

from vlmix.builders.miniature.gqa_program import Draft, Step
from vlmix.builders.miniature.scenes import COLORS, KINDS, Scene, Thing
from vlmix.builders.miniature.texts import (
    RELATIONS,
    article,
    column,
    kin,
    left_of,
    look,
    name,
    other_than,
    relation,
)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


class Asker:
    """Drafts questions about one scene. Object ids are stable numbers of the image."""

    def __init__(self, scene: Scene, first_object: int, rng: Random) -> None:
        self.scene, self.rng = scene, rng
        self.ids = {look(thing): first_object + number for number, thing in enumerate(scene.things)}

    def object_id(self, thing: Thing) -> str:
        """The id by which programs and annotations name a thing."""
        return str(self.ids[look(thing)])

    def select(self, thing: Thing) -> list[Step]:
        """The program that finds one thing: by kind, with a colour filter where the kind alone is ambiguous."""
        steps: list[Step] = [("select", [], f"{thing.kind} ({self.object_id(thing)})")]
        if len(kin(self.scene, thing.kind)) > 1:
            steps.append(("filter color", [0], thing.color))
        return steps

    def color(self, thing: Thing) -> list[Draft]:
        """Query, verify (one true or false) and choose the colour of a thing that is alone of its kind."""
        if len(kin(self.scene, thing.kind)) > 1:
            return []
        kind, color, steps = thing.kind, thing.color, self.select(thing)
        wrong = other_than(self.rng, list(COLORS), color)
        asked = color if self.rng.random() < 0.5 else wrong
        first, second = self.rng.sample((color, wrong), 2)
        topic, things = f"color/{kind}", (thing,)
        negation = "" if asked == color else " not"
        full = f"The {kind} is {color}."
        return [
            Draft(
                f"What color is the {kind}?",
                color,
                full,
                [*steps, ("query", [0], "color")],
                ("query", "attr", "directOf"),
                "color",
                f"10q-{kind}_color",
                topic,
                things,
            ),
            Draft(
                f"Is the {kind} {asked}?",
                _yes(asked == color),
                f"{_yes(asked == color).capitalize()}, the {kind} is{negation} {asked}.",
                [*steps, ("verify color", [0], asked)],
                ("verify", "attr", "verifyAttr"),
                None,
                f"06-{kind}_{asked}",
                topic,
                things,
            ),
            Draft(
                f"Is the {kind} {first} or {second}?",
                color,
                full,
                [*steps, ("choose color", [0], f"{first}|{second}")],
                ("choose", "attr", "chooseAttr"),
                "color",
                f"10c-{kind}_color",
                topic,
                things,
            ),
        ]

    def size(self, thing: Thing) -> list[Draft]:
        """Verify size and colour together: a logical question."""
        if len(kin(self.scene, thing.kind)) > 1:
            return []
        color = thing.color if self.rng.random() < 0.7 else other_than(self.rng, list(COLORS), thing.color)
        size = thing.size if self.rng.random() < 0.7 else other_than(self.rng, ["small", "large"], thing.size)
        truth = color == thing.color and size == thing.size
        full = (
            f"Yes, the {thing.kind} is {color} and {size}."
            if truth
            else f"No, the {thing.kind} is {thing.color} and {thing.size}."
        )
        steps: list[Step] = [
            *self.select(thing),
            ("verify color", [0], color),
            ("verify size", [0], size),
            ("and", [1, 2], ""),
        ]
        return [
            Draft(
                f"Is the {thing.kind} {color} and {size}?",
                _yes(truth),
                full,
                steps,
                ("logical", "attr", "verifyAttrs"),
                None,
                f"05-{color}_{size}",
                f"size/{thing.kind}",
                (thing,),
            )
        ]

    def position(self, thing: Thing) -> list[Draft]:
        """Verify or choose the side of the picture, for things on the left or right."""
        where = column(self.scene, thing)
        if where == "middle":
            return []
        called, steps = name(self.scene, thing), self.select(thing)
        asked = self.rng.choice(("left", "right"))
        last = len(steps) - 1
        full = f"The {called} is on the {where} of the image."
        topic = f"side/{look(thing)}"
        return [
            Draft(
                f"Is the {called} on the {asked} of the image?",
                _yes(asked == where),
                f"{_yes(asked == where).capitalize()}, the {called} is on the {where} of the image.",
                [*steps, ("verify hposition", [last], asked)],
                ("verify", "attr", "positionVerify"),
                None,
                f"00v-{thing.kind}_{asked}",
                topic,
                (thing,),
            ),
            Draft(
                f"Is the {called} on the left or on the right of the image?",
                where,
                full,
                [*steps, ("choose hposition", [last], "left|right")],
                ("choose", "attr", "positionChoose"),
                "hposition",
                f"00c-{thing.kind}_hposition",
                topic,
                (thing,),
            ),
        ]

    def related(self, thing: Thing) -> list[Draft]:
        """ "What is to the left of the red ball?", where exactly one thing is."""
        drafts = []
        called, steps = name(self.scene, thing), self.select(thing)
        for words, holds in RELATIONS:
            found = [other for other in self.scene.things if other != thing and holds(other, thing)]
            if len(found) != 1:
                continue
            answer, last = found[0], len(steps)
            program: list[Step] = [
                *steps,
                ("relate", [last - 1], f"_,{words},s ({self.object_id(answer)})"),
                ("query", [last], "name"),
            ]
            drafts.append(
                Draft(
                    f"What is {words} the {called}?",
                    answer.kind,
                    f"The {answer.kind} is {words} the {called}.",
                    program,
                    ("query", "rel", "relS"),
                    "object",
                    f"14-{thing.kind}_{words},s",
                    f"rel/{words}/{look(thing)}",
                    (thing,),
                    answer,
                )
            )
            color: list[Step] = [*program[:-1], ("query", [last], "color")]
            drafts.append(
                Draft(
                    f"What color is the object {words} the {called}?",
                    answer.color,
                    f"The object {words} the {called} is {answer.color}.",
                    color,
                    ("query", "attr", "directOf"),
                    "color",
                    f"12q-{thing.kind}_{words}_color",
                    f"relcolor/{words}/{look(thing)}",
                    (thing,),
                )
            )
        return drafts

    def verified_relation(self, thing: Thing, other: Thing) -> list[Draft]:
        """ "Is the star above the tree?"."""
        held = relation(thing, other)
        if held is None:
            return []
        words = (
            held
            if self.rng.random() < 0.5
            else self.rng.choice([w for w, holds in RELATIONS if not holds(thing, other)])
        )
        a, b = name(self.scene, thing), name(self.scene, other)
        steps = self.select(other)
        last = len(steps)
        program: list[Step] = [
            *steps,
            ("relate", [last - 1], f"{thing.kind},{words},s ({self.object_id(thing)})"),
            ("exist", [last], "?"),
        ]
        return [
            Draft(
                f"Is the {a} {words} the {b}?",
                _yes(words == held),
                f"{_yes(words == held).capitalize()}, the {a} is {held} the {b}.",
                program,
                ("verify", "rel", "relVerify"),
                None,
                f"13-{thing.kind}_{other.kind}",
                f"relv/{look(thing)}/{look(other)}",
                (thing, other),
            )
        ]

    def compared(self, thing: Thing, other: Thing) -> list[Draft]:
        """ "Are the star and the tree the same color?"."""
        same = thing.color == other.color
        a, b = name(self.scene, thing), name(self.scene, other)
        first, second = self.select(thing), self.select(other)
        shifted: list[Step] = [
            (operation, [at + len(first) for at in at_list], argument) for operation, at_list, argument in second
        ]
        program: list[Step] = [*first, *shifted, ("same color", [len(first) - 1, len(first) + len(second) - 1], "")]
        full = (
            f"{_yes(same).capitalize()}, both are {thing.color}."
            if same
            else f"No, the {a} is {thing.color} and the {b} is {other.color}."
        )
        return [
            Draft(
                f"Are the {a} and the {b} the same color?",
                _yes(same),
                full,
                program,
                ("compare", "attr", "twoSame"),
                None,
                f"02s-{thing.kind}_{other.kind}",
                f"same/{look(thing)}/{look(other)}",
                (thing, other),
            )
        ]

    def existence(self) -> list[Draft]:
        """Exist questions about two kinds, and about a colour."""
        present = sorted({thing.kind for thing in self.scene.things})
        asked = [self.rng.choice(present), other_than(self.rng, list(KINDS), set(present))]
        drafts = []
        for kind in asked:
            truth = kind in present
            full = (
                f"Yes, there is {article(kind)} in the picture." if truth else f"No, there are no {KINDS[kind].plural}."
            )
            found = f"{kind} ({self.object_id(kin(self.scene, kind)[0])})" if truth else f"{kind} (-)"
            drafts.append(
                Draft(
                    f"Is there {article(kind)} in the picture?",
                    _yes(truth),
                    full,
                    [("select", [], found), ("exist", [0], "?")],
                    ("verify", "obj", "exist"),
                    None,
                    f"11-{kind}",
                    f"exist/{kind}",
                )
            )
        second = self.rng.choice(present if self.rng.random() < 0.5 else list(KINDS))
        both = asked[0], second
        truth = second in present
        steps: list[Step] = [
            ("select", [], f"{asked[0]} (-)"),
            ("exist", [0], "?"),
            ("select", [], f"{second} (-)"),
            ("exist", [2], "?"),
            ("and", [1, 3], ""),
        ]
        if both[0] != second:
            full = (
                f"Yes, there are both {article(both[0])} and {article(second)}."
                if truth
                else f"No, there is {article(both[0])} but there are no {KINDS[second].plural}."
            )
            drafts.append(
                Draft(
                    f"Are there both {article(both[0])} and {article(second)}?",
                    _yes(truth),
                    full,
                    steps,
                    ("logical", "obj", "existAnd"),
                    None,
                    f"03-{both[0]}_{second}",
                    f"both/{both[0]}/{second}",
                )
            )
        return drafts

    def place(self) -> list[Draft]:
        """Where the picture was taken."""
        place = self.scene.place
        inside = self.rng.random() < 0.5
        truth = (place == "room") == inside
        word = "indoors" if inside else "outdoors"
        real = "indoors" if place == "room" else "outdoors"
        return [
            Draft(
                "Which place is it?",
                place,
                f"It is a {place}.",
                [("select", [], "scene"), ("query", [0], "place")],
                ("query", "global", "place"),
                "place",
                "09-place",
                "place",
            ),
            Draft(
                f"Is it {word}?",
                _yes(truth),
                f"{_yes(truth).capitalize()}, it is {real}.",
                [("select", [], "scene"), ("verify location", [0], word)],
                ("verify", "global", "locationVerify"),
                None,
                "09-location",
                "place",
            ),
        ]

    def drafts(self) -> list[Draft]:
        """All questions in random order, each text once."""
        things = list(self.scene.things)
        single: list[Callable[[Thing], list[Draft]]] = [self.color, self.size, self.position, self.related]
        found = [draft for make in single for thing in things for draft in make(thing)]
        for thing in things:
            for other in things:
                if thing != other:
                    found += self.verified_relation(thing, other)
                # Most pairs differ in colour; a part of them is enough.
                if left_of(thing, other) and (thing.color == other.color or self.rng.random() < 0.4):
                    found += self.compared(thing, other)
        found += self.existence() + self.place()
        self.rng.shuffle(found)
        return list({draft.question: draft for draft in found}.values())
