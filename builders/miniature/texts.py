"""Names, questions and captions of a scene. Everything said here can be checked against the scene."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vlmix.builders.miniature.scenes import COLORS, KINDS, PLACES, Scene, Thing

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five")
SYNONYMS = {"ball": "sphere", "box": "square", "cross": "plus", "house": "home", "car": "vehicle", "tree": "plant"}


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with its answer, the VQA answer type, and what a few of ten people might write instead."""

    question: str
    answer: str
    answer_type: str
    doubts: tuple[str, ...] = ()


def article(words: str) -> str:
    """The words with "a" or "an" in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def yes_or_no(truth: bool) -> str:
    return "yes" if truth else "no"


def join(items: list[str]) -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _third(share: float, low: str, high: str) -> str:
    return low if share < 0.4 else high if share > 0.6 else "middle"


def column(scene: Scene, thing: Thing) -> str:
    """ "left", "middle" or "right": the third of the picture that holds the thing's centre, with wide margins."""
    return _third((thing.x + thing.w / 2) / scene.width, "left", "right")


def row(scene: Scene, thing: Thing) -> str:
    """ "top", "middle" or "bottom"."""
    return _third((thing.y + thing.h / 2) / scene.height, "top", "bottom")


def side(scene: Scene, thing: Thing) -> str:
    """The column as a phrase: "on the left", "in the middle"."""
    word = column(scene, thing)
    return "in the middle" if word == "middle" else f"on the {word}"


def corner(scene: Scene, thing: Thing) -> str:
    """Row and column as a phrase: "at the top left", "in the middle"."""
    vertical, horizontal = row(scene, thing), column(scene, thing)
    if vertical == horizontal == "middle":
        return "in the middle"
    if vertical == "middle":
        return f"on the {horizontal}"
    return f"at the {vertical}" if horizontal == "middle" else f"at the {vertical} {horizontal}"


def kin(scene: Scene, kind: str) -> list[Thing]:
    return [thing for thing in scene.things if thing.kind == kind]


def only(scene: Scene, test: Callable[[Thing], bool]) -> Thing | None:
    """The one thing that passes the test, or None when there are none or several."""
    found = [thing for thing in scene.things if test(thing)]
    return found[0] if len(found) == 1 else None


def look(thing: Thing) -> str:
    """Colour and kind; names exactly one thing of a scene."""
    return f"{thing.color} {thing.kind}"


def name(scene: Scene, thing: Thing) -> str:
    """The shortest name that fits no other thing of the scene: the kind alone, else colour and kind."""
    return thing.kind if len(kin(scene, thing.kind)) == 1 else look(thing)


def colorless(scene: Scene, thing: Thing) -> str | None:
    """A name without the colour: the kind, else kind and place; None when neither is unique."""
    if len(kin(scene, thing.kind)) == 1:
        return thing.kind
    place = side(scene, thing)
    alone = only(scene, lambda other: other.kind == thing.kind and side(scene, other) == place)
    return f"{thing.kind} {place}" if alone else None


def kindless(scene: Scene, thing: Thing) -> str | None:
    """A name without the kind: colour, else place; None when neither is unique."""
    if only(scene, lambda other: other.color == thing.color):
        return f"{thing.color} object"
    place = side(scene, thing)
    return f"object {place}" if only(scene, lambda other: side(scene, other) == place) else None


def left_of(thing: Thing, other: Thing) -> bool:
    """True when the thing ends before the other begins."""
    return thing.x + thing.w <= other.x


def above(thing: Thing, other: Thing) -> bool:
    """True when the thing ends above where the other begins."""
    return thing.y + thing.h <= other.y


RELATIONS: tuple[tuple[str, Callable[[Thing, Thing], bool]], ...] = (
    ("to the left of", left_of),
    ("to the right of", lambda thing, other: left_of(other, thing)),
    ("above", above),
    ("below", lambda thing, other: above(other, thing)),
)


def relation(thing: Thing, other: Thing) -> str | None:
    """The first relation that holds between two things; None when their extents overlap in both directions."""
    return next((words for words, holds in RELATIONS if holds(thing, other)), None)


def other_than(rng: Random, options: dict[str, object] | list[str], taken: str | set[str]) -> str:
    banned = {taken} if isinstance(taken, str) else taken
    return rng.choice([option for option in options if option not in banned])


def color_fact(scene: Scene, thing: Thing) -> Fact | None:
    """ "What color is the ball?"; None when the thing has no name without its colour."""
    called = colorless(scene, thing)
    return Fact(f"What color is the {called}?", thing.color, "other", (f"dark {thing.color}",)) if called else None


def count_fact(scene: Scene, kind: str) -> Fact:
    """ "How many stars are there?", the answer as digits."""
    count = len(kin(scene, kind))
    return Fact(f"How many {KINDS[kind].plural} are there?", str(count), "number", (str(count + 1),))


def exist_fact(scene: Scene, rng: Random) -> Fact:
    """ "Is there a red ball?"; half of the answers are yes, and the false ones miss by colour or by kind."""
    thing = rng.choice(scene.things)
    kinds = {other.kind for other in scene.things}
    if rng.random() < 0.5:
        kind = thing.kind if rng.random() < 0.5 else other_than(rng, list(KINDS), kinds)
        return Fact(f"Is there {article(kind)} in the picture?", yes_or_no(kind in kinds), "yes/no")
    looks = {look(other) for other in scene.things}
    wanted = look(thing)
    if rng.random() < 0.5:
        wanted = other_than(rng, [f"{color} {thing.kind}" for color in COLORS], looks)
    return Fact(f"Is there {article(wanted)}?", yes_or_no(wanted in looks), "yes/no")


def verify_fact(scene: Scene, rng: Random, thing: Thing) -> Fact | None:
    """ "Is the ball red?", true half of the time."""
    called = colorless(scene, thing)
    if called is None:
        return None
    color = thing.color if rng.random() < 0.5 else other_than(rng, list(COLORS), thing.color)
    return Fact(f"Is the {called} {color}?", yes_or_no(color == thing.color), "yes/no")


def relation_question(scene: Scene, rng: Random, thing: Thing, other: Thing) -> tuple[str, str, bool] | None:
    """ "Is the star above the tree?", the words of the relation, and whether it holds: half of the time."""
    held = relation(thing, other)
    if held is None:
        return None
    false = [words for words, holds in RELATIONS if not holds(thing, other)]
    words = held if rng.random() < 0.5 else rng.choice(false)
    return f"Is the {name(scene, thing)} {words} the {name(scene, other)}?", words, words == held


def relation_fact(scene: Scene, rng: Random) -> Fact | None:
    """Whether a thing is above, below or beside another; None for a scene with one thing."""
    asked = relation_question(scene, rng, *rng.sample(scene.things, 2)) if len(scene.things) > 1 else None
    return Fact(asked[0], yes_or_no(asked[2]), "yes/no") if asked else None


def kind_fact(scene: Scene, thing: Thing) -> Fact | None:
    """ "What is the red object?"."""
    called = kindless(scene, thing)
    doubts = (SYNONYMS[thing.kind],) if thing.kind in SYNONYMS else ()
    return Fact(f"What is the {called}?", thing.kind, "other", doubts) if called else None


def visual_facts(scene: Scene, rng: Random, count: int) -> list[Fact]:
    """`count` different questions; a colour, a number and a yes/no question come first where the scene allows it."""
    things = list(scene.things)
    rng.shuffle(things)
    present = things[0].kind
    absent = other_than(rng, list(KINDS), {thing.kind for thing in things})
    most = max(things, key=lambda thing: len(kin(scene, thing.kind))).kind
    # Counting the most numerous kind half of the time keeps "1" from being the answer to everything.
    number = count_fact(scene, most if rng.random() < 0.5 else rng.choice((present, absent)))
    first = [color_fact(scene, things[0]), number, exist_fact(scene, rng)]
    rest = [
        *(color_fact(scene, thing) for thing in things[1:]),
        *(kind_fact(scene, thing) for thing in things),
        *(verify_fact(scene, rng, thing) for thing in things),
        count_fact(scene, absent if rng.random() < 0.5 else things[-1].kind),
        Fact("How many objects are in the picture?", str(len(things)), "number"),
        exist_fact(scene, rng),
        relation_fact(scene, rng),
        relation_fact(scene, rng),
        Fact("Where is this?", scene.place, "other", ("outside" if scene.place != "room" else "inside",)),
        Fact("Is this indoors?", yes_or_no(scene.place == "room"), "yes/no"),
        Fact("What is on the ground?", PLACES[scene.place].below.split()[1], "other"),
    ]
    rng.shuffle(rest)
    facts: dict[str, Fact] = {}
    for fact in filter(None, [*first, *rest]):
        facts.setdefault(fact.question, fact)
    chosen = list(facts.values())[:count]
    rng.shuffle(chosen)
    return chosen


def described(thing: Thing) -> str:
    """ "a large red ball"."""
    return article(f"{thing.size} {look(thing)}")


def caption(scene: Scene, *, sizes: bool = True) -> str:
    """One lower-case sentence without a full stop: "a large red ball and a small green tree on a beach"."""
    items = [described(thing) if sizes else article(look(thing)) for thing in scene.things]
    return f"{join(items)} {PLACES[scene.place].phrase}"


def inventory(scene: Scene) -> list[str]:
    """Full sentences that say where every thing stands and how the things relate."""
    place = PLACES[scene.place]
    sentences = [f"{described(thing).capitalize()} is {corner(scene, thing)} of the picture." for thing in scene.things]
    for thing, other in zip(scene.things, scene.things[1:], strict=False):
        if words := relation(thing, other):
            sentences.append(f"The {name(scene, thing)} is {words} the {name(scene, other)}.")
    above = article(place.above) if scene.place == "room" else place.above
    sentences.append(f"The lower part of the picture is {place.below}, and behind the objects there is {above}.")
    return sentences
