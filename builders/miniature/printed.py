"""Things with print on them: book covers for OCR-VQA, signs for TextCaps, and their pictures.

A cover's colour and emblem show the genre, the colour of its spine shows the author; so the questions can be learned
from pictures too small to read.
"""

from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw, ImageFont

from vlmix.builders.miniature.scenes import COLORS, OUTLINE, SIZES, Color, Scene, Thing, background, draw_thing

PAPER = (250, 248, 240)
COVER = (120, 160)

GENRES: dict[str, tuple[str, str, tuple[str, str]]] = {
    "Travel": ("blue", "car", ("Road", "Journey")),
    "Children's Books": ("yellow", "ball", ("Playground", "Bedtime")),
    "Science & Math": ("black", "triangle", ("Geometry", "Numbers")),
    "Crafts, Hobbies & Home": ("orange", "house", ("Workshop", "Cottage")),
    "Medical Books": ("white", "cross", ("Nursing", "First Aid")),
    "Sports & Outdoors": ("green", "tree", ("Forest", "Hiking")),
    "Science Fiction & Fantasy": ("purple", "star", ("Galaxy", "Comet")),
    "Calendars": ("red", "box", ("Calendar", "Planner")),
}
"""Genre to cover colour, emblem and nouns of titles."""

ADJECTIVES = ("Little", "Great", "Quiet", "Open", "Simple", "Long")
AUTHORS: dict[str, str] = {
    "Ada Fernwood": "green",
    "Bruno Quill": "red",
    "Carla Stonebridge": "blue",
    "Dario Wicklow": "yellow",
    "Edda Marlowe": "purple",
    "Fritz Tannen": "orange",
}
WORDS = "OPEN CLOSED STOP EXIT CAFE HOTEL TAXI BANK FISH TEA BUS PARK ZOO SALE SLOW MUSEUM"


@dataclass(frozen=True, slots=True)
class Book:
    """A book cover; the author may be empty or "*", the year is printed on calendars only."""

    title: str
    author: str
    genre: str
    year: int


@dataclass(frozen=True, slots=True)
class Sign:
    """A board of one colour on a pole, with up to four words, in an empty place."""

    scene: Scene
    color: str
    words: tuple[str, ...]


def compose_book(rng: Random) -> Book:
    """A random book; a calendar's title ends with its year."""
    genre = rng.choice(list(GENRES))
    year = rng.randint(2001, 2016)
    title = f"The {rng.choice(ADJECTIVES)} {rng.choice(GENRES[genre][2])}"
    return Book(f"{title} {year}" if genre == "Calendars" else title, rng.choice(list(AUTHORS)), genre, year)


def compose_sign(rng: Random, words: tuple[str, ...] | None = None) -> Sign:
    """A random sign; the words are random too unless given."""
    width, height = rng.choice(SIZES)
    chosen = tuple(rng.sample(WORDS.split(), rng.randint(1, 4))) if words is None else words
    return Sign(Scene(width, height, rng.choice(("field", "beach", "room")), ()), rng.choice(list(COLORS)), chosen)


def ink(color: str) -> Color:
    """Black or white, whichever reads better on the colour."""
    red, green, blue = COLORS[color]
    return OUTLINE if 0.3 * red + 0.6 * green + 0.1 * blue > 130 else PAPER


def fitting_font(words: list[str], width: float, height: float) -> ImageFont.FreeTypeFont:
    """The largest of Pillow's embedded font in which every line fits the width and a line fits the height (pixels)."""
    for size in range(int(height), 7, -1):
        font = ImageFont.load_default(size=size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow was built without FreeType, which the sample's covers and signs need")
        if all(font.getlength(word) <= width for word in words):
            return font
    raise ValueError(f"no font of 8 pixels or more fits {words} into {width:.0f} x {height:.0f} pixels")


def draw_book(book: Book) -> Image.Image:
    color, emblem, _ = GENRES[book.genre]
    picture = Image.new("RGB", COVER, COLORS[color])
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, 11, 159), fill=COLORS[AUTHORS[book.author]] if book.author in AUTHORS else OUTLINE)
    draw.line((12, 0, 12, 159), fill=OUTLINE)
    draw.rectangle((36, 68, 95, 127), fill=PAPER, outline=OUTLINE)
    # Each emblem in the cover's colour, but for the white cover, whose red cross would vanish on paper.
    top, height = (84, 27) if emblem == "car" else (76, 44)
    badge = Thing(emblem, "red" if color == "white" else color, "large", 44, top, 44, height)
    draw_thing(draw, badge, scale=1)
    first, _, rest = book.title.partition(" ")
    lines = [first, *(rest.rsplit(" ", 1) if len(rest) > 14 else [rest])]
    font = fitting_font(lines, 100, 17)
    for number, line in enumerate(lines):
        draw.text((18, 4 + 18 * number), line, fill=ink(color), font=font)
    if book.author:
        draw.text((18, 138), book.author, fill=ink(color), font=fitting_font([book.author], 100, 14))
    return picture


def draw_sign(sign: Sign) -> Image.Image:
    width, height = sign.scene.width, sign.scene.height
    picture = background(sign.scene).reduce(2)
    draw = ImageDraw.Draw(picture)
    per_line = 2 if width > height else 1
    lines = [sign.words[at : at + per_line] for at in range(0, len(sign.words), per_line)]
    left, top, right, bottom = round(width * 0.08), round(height * 0.1), round(width * 0.92), round(height * 0.7)
    draw.rectangle((width // 2 - 3, bottom, width // 2 + 3, height - 1), fill=(90, 90, 96))
    draw.rounded_rectangle((left, top, right, bottom), radius=6, fill=COLORS[sign.color], outline=OUTLINE, width=2)
    if not sign.words:
        return picture
    step = (bottom - top - 8) / len(lines)
    font = fitting_font([" ".join(line) for line in lines], right - left - 12, min(30.0, step * 0.8))
    for number, line in enumerate(lines):
        x = (width - font.getlength(" ".join(line))) / 2
        for word in line:
            at = (x, top + 4 + step * (number + 0.5))
            draw.text(at, word, fill=ink(sign.color), font=font, anchor="lm")
            x += font.getlength(f"{word} ")
    return picture
