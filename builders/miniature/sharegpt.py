"""ShareGPT: text chats about colours, shapes, numbers, lists and code, and the irregular chats of the real dump."""

from random import Random

from vlmix.builders.miniature import ids
from vlmix.builders.miniature.dirt import RECORD
from vlmix.builders.miniature.files import Folder, Record, turns
from vlmix.builders.miniature.scenes import COLORS, KINDS
from vlmix.builders.miniature.texts import NUMBER_WORDS, article, join

Pair = tuple[str, str]

CORNERS = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6, "octagon": 8}
MIXES = {"red and yellow": "orange", "blue and yellow": "green", "red and blue": "purple", "black and white": "gray"}
FOREIGN: tuple[tuple[Pair, ...], ...] = (
    (
        ("Welche Farbe entsteht, wenn man Blau und Gelb mischt?", "Aus Blau und Gelb entsteht Grün."),
        ("Und wie viele Ecken hat ein Dreieck?", "Ein Dreieck hat drei Ecken."),
    ),
    (
        ("¿Cuántos lados tiene un cuadrado?", "Un cuadrado tiene cuatro lados iguales."),
        ("Gracias. ¿Y un triángulo?", "Un triángulo tiene tres lados."),
    ),
    (("请告诉我红色和黄色混合后的颜色", "红色和黄色混合后是橙色。"),),
)


def arithmetic(rng: Random) -> list[Pair]:
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(10, 60)
    total = a * b + c
    return [
        (f"What is {a} times {b}?", f"{a} times {b} is {a * b}."),
        (f"Add {c} to that.", f"{a * b} plus {c} is {total}."),
        ("Is the result even or odd?", f"{total} is {'odd' if total % 2 else 'even'}."),
    ]


def shapes(rng: Random) -> list[Pair]:
    both = rng.sample(list(CORNERS), 2)
    one, two = (article(shape) for shape in both)
    more, less = sorted(both, key=lambda shape: -CORNERS[shape])
    return [
        (f"How many corners does {one} have?", f"{one.capitalize()} has {CORNERS[both[0]]} corners."),
        (f"And {two}?", f"{two.capitalize()} has {CORNERS[both[1]]} corners."),
        ("Which of the two has more?", f"The {more} has more corners: {CORNERS[more]} against {CORNERS[less]}."),
    ]


def colors(rng: Random) -> list[Pair]:
    first, second = rng.sample(list(MIXES), 2)
    return [
        (f"Which color do I get when I mix {first} paint?", f"Mixing {first} paint gives {MIXES[first]}."),
        (f"What about {second}?", f"{second.capitalize()} paint together give {MIXES[second]}."),
    ]


def lists(rng: Random) -> list[Pair]:
    things = [KINDS[kind].plural for kind in rng.sample(list(KINDS), rng.randint(3, 5))]
    bullets = "\n".join(f"{number}. {thing}" for number, thing in enumerate(things, 1))
    question = f"Give me a numbered list of {NUMBER_WORDS[len(things)]} things that a child could draw."
    ordered = f"In alphabetical order: {join(sorted(things))}."
    return [(question, f"A child could draw:\n\n{bullets}"), ("Put them into alphabetical order.", ordered)]


def code(rng: Random) -> list[Pair]:
    factor, value = rng.randint(2, 9), rng.randint(2, 20)
    body = f"```python\ndef scale(value):\n    return {factor} * value\n```"
    return [
        (f"Write a Python function that multiplies a number by {factor}.", f"Here it is:\n\n{body}"),
        (f"What does it return for {value}?", f"For {value} it returns {factor * value}."),
    ]


def sorting(rng: Random) -> list[Pair]:
    words = rng.sample(list(COLORS), 3)
    return [(f"Sort these words alphabetically: {', '.join(words)}", f"{', '.join(sorted(words))}")]


TOPICS = (arithmetic, shapes, colors, lists, code, sorting)


def long_chat() -> list[Pair]:
    """40 multiplication tables: some 70 words a pair, far beyond 2048 tokens together."""
    pairs = []
    for number in range(2, 42):
        rows = "; ".join(f"{factor} times {number} is {factor * number}" for factor in range(1, 13))
        pairs.append((f"Show me the multiplication table of {number}.", f"Here is the table of {number}: {rows}."))
    return pairs


def irregular(clean: list[Pair]) -> dict[str, list[Record]]:
    """The irregular chats by id, made from a clean one."""
    plain = turns(clean)
    tool = {"from": "tool", "value": "calculator: ready"}
    keyed = [{**turn, "language": "en", "overall_sentiment": {"neg": 0.0, "pos": 0.0}} for turn in plain]
    html = '<div class="markdown prose w-full break-words"><p>A square has <strong>four</strong> corners.</p></div>'
    hello = {"from": "gpt", "value": "Hello! I can answer questions about shapes and numbers."}
    escaped = ("How do I name a variable for the corner count?", "Call it corner\\_count, in lower case.")
    chats = {
        "sharegpt-gpt-first": [hello, *plain],
        "sharegpt-system-first": [{"from": "system", "value": "Answer in short sentences."}, *plain],
        "sharegpt-single-turn": [{"from": "gpt", "value": "A circle has no corners."}],
        "sharegpt-not-alternating": [{"from": "human", "value": "I have a question about numbers."}, *plain],
        "sharegpt-zero-width": [*plain[:2], {"from": "human", "value": "Thanks."}, {"from": "gpt", "value": "\u200b"}],
        "sharegpt-unknown-role": [plain[0], tool, *plain[1:]],
        "sharegpt-user-chatgpt": turns(clean, "user", "chatgpt"),
        "sharegpt-extra-keys": keyed,
        "sharegpt-continuation": plain[1:],
        "sharegpt-long": turns(long_chat()),
        "sharegpt-odd-human": [*plain, {"from": "human", "value": "And one more thing"}],
        "sharegpt-html": turns([("How many corners does a square have?", html), clean[0]]),
        "sharegpt-escaped": turns([escaped, clean[0]]),
    }
    return {RECORD[name]: chat for name, chat in chats.items()}


def write_sharegpt(folder: Folder, seed: int, sizes: dict[str, int]) -> None:
    odd = irregular(arithmetic(Random(f"{seed}/sharegpt/irregular")))
    rows: list[Record] = []
    for index in range(sizes["sharegpt"]):
        rng = Random(f"{seed}/sharegpt/{index}")
        # Every eighth chat is in another language.
        pairs = list(FOREIGN[index // 8 % len(FOREIGN)]) if index % 8 == 7 else TOPICS[index % len(TOPICS)](rng)
        rows.append({"id": ids.chat(index), "conversations": odd.get(ids.chat(index), turns(pairs))})
        if (later := odd.get(ids.chat(index, 1))) is not None:
            rows.append({"id": ids.chat(index, 1), "conversations": later})
    folder.json("sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json", rows, len(rows))
