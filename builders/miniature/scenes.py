"""Scenes: a description of a few coloured objects, and the picture of it.

Invariants: objects never overlap and lie wholly inside the picture; no two objects of a scene share kind and colour;
the pixel at the centre of an object's box has the object's colour. Every text of the sample is derived from a scene,
so it is true of the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""x, y, width, height in pixels, origin at the top left."""

COLORS: dict[str, Color] = {
    "red": (214, 36, 38),
    "orange": (246, 132, 26),
    "yellow": (250, 218, 30),
    "green": (20, 128, 54),
    "blue": (32, 74, 214),
    "purple": (134, 44, 168),
    "black": (28, 28, 28),
    "white": (252, 252, 252),
}
SIZES = ((160, 120), (120, 160), (128, 128), (192, 128))
OUTLINE = (24, 24, 24)
BROWN = (112, 66, 40)
GREY = (132, 132, 132)
GLASS = (196, 226, 240)
SCALE = 2  # pictures are made at twice the size, then averaged: smooth edges at the cost of one resize

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A named part of a kind: its box in the unit square, and its fill (None: the object's own colour)."""

    name: str
    box: tuple[float, float, float, float]
    fill: Color | None = None
    round: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """What an object is: outline in the unit square (a ball has none), parts, where such things are found, who uses
    them, and proportions."""

    plural: str
    outline: Points
    parts: tuple[Part, ...]
    found: str
    user: str
    width: float = 1
    height: float = 1


def _points(percent: str) -> Points:
    numbers = [int(number) / 100 for number in percent.replace(",", " ").split()]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


BOX = _points("0,0 100,0 100,100 0,100")
TRIANGLE = _points("50,0 100,100 0,100")
STAR = _points("50,0 62,36 100,38 70,61 81,100 50,78 19,100 30,61 0,38 38,36")
CROSS = _points("33,0 67,0 67,33 100,33 100,67 67,67 67,100 33,100 33,67 0,67 0,33 33,33")
HOUSE = _points("50,0 100,40 92,40 92,100 8,100 8,40 0,40")
TREE = _points("50,0 84,40 68,40 100,78 60,78 60,100 40,100 40,78 0,78 32,40 16,40")
CAR = _points("0,42 20,42 32,0 70,0 84,42 100,42 100,80 0,80")

LIGHT = Part("light spot", (0.2, 0.16, 0.2, 0.2), (226, 226, 226), True)
HOUSE_PARTS = (
    Part("roof", (0, 0, 1, 0.4), BROWN),
    Part("door", (0.62, 0.62, 0.2, 0.38), BROWN),
    Part("window", (0.17, 0.52, 0.22, 0.22), GLASS),
)
TREE_PARTS = (Part("trunk", (0.4, 0.78, 0.2, 0.22), BROWN), Part("top", (0.16, 0, 0.68, 0.4)))
CAR_PARTS = (
    Part("left wheel", (0.1, 0.62, 0.235, 0.38), OUTLINE, True),
    Part("right wheel", (0.665, 0.62, 0.235, 0.38), OUTLINE, True),
    Part("window", (0.34, 0.08, 0.34, 0.28), GLASS),
)

KINDS: dict[str, Kind] = {
    "ball": Kind("balls", (), (LIGHT,), "playground", "player"),
    "box": Kind("boxes", BOX, (Part("lid", (0, 0, 1, 0.26)),), "warehouse", "mover"),
    "triangle": Kind("triangles", TRIANGLE, (Part("tip", (0.34, 0, 0.32, 0.32)),), "road sign", "math teacher"),
    "star": Kind("stars", STAR, (Part("top point", (0.37, 0, 0.26, 0.36)),), "sky", "astronomer"),
    "cross": Kind("crosses", CROSS, (Part("upper arm", (0.33, 0, 0.34, 0.33)),), "hospital", "nurse"),
    "house": Kind("houses", HOUSE, HOUSE_PARTS, "village", "family"),
    "tree": Kind("trees", TREE, TREE_PARTS, "forest", "bird", width=0.8),
    "car": Kind("cars", CAR, CAR_PARTS, "street", "driver", height=0.62),
}


@dataclass(frozen=True, slots=True)
class Place:
    """A background: what is above and below the horizon, and how to speak about it."""

    phrase: str
    above: str
    below: str
    above_color: Color
    below_color: Color
    season: str


PLACES: dict[str, Place] = {
    "field": Place("in a field", "blue sky", "green grass", (176, 216, 246), (158, 208, 124), "spring"),
    "beach": Place("on a beach", "blue sky", "yellow sand", (176, 216, 246), (240, 222, 166), "summer"),
    "room": Place("in a room", "gray wall", "brown floor", (202, 202, 206), (176, 142, 112), "winter"),
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: its kind (key of KINDS), colour (key of COLORS), size ("small" or "large") and tight pixel box."""

    kind: str
    color: str
    size: str
    x: int
    y: int
    w: int
    h: int

    @property
    def box(self) -> Box:
        return self.x, self.y, self.w, self.h

    @property
    def center(self) -> tuple[int, int]:
        """The pixel in the middle of the box; it has the object's colour."""
        return self.x + self.w // 2, self.y + self.h // 2


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture of `width` x `height` pixels: a place and one to four things."""

    width: int
    height: int
    place: str
    things: tuple[Thing, ...]

    @property
    def horizon(self) -> int:
        """The pixel row where the ground begins."""
        return round(self.height * 0.6)


def compose(rng: Random, least: int = 1, most: int = 4, shapes: tuple[tuple[int, int], ...] = SIZES) -> Scene:
    """A random scene with `least` to `most` things, each alone in a cell of a grid that fits the aspect ratio."""
    width, height = rng.choice(shapes)
    columns, rows = (3, 2) if width > height else (2, 3) if height > width else (2, 2)
    cell_w, cell_h = width // columns, height // rows
    cells = rng.sample([(column, row) for column in range(columns) for row in range(rows)], rng.randint(least, most))
    looks: list[tuple[str, str]] = []
    things = []
    for column, row in cells:
        # A third of the further things repeat a kind, so that counts above one are not rare.
        while True:
            kind = rng.choice(looks)[0] if looks and rng.random() < 0.34 else rng.choice(list(KINDS))
            look = kind, rng.choice(list(COLORS))
            if look not in looks:
                break
        looks.append(look)
        size = rng.choice(("small", "large"))
        side = min(cell_w, cell_h) * (0.86 if size == "large" else 0.52)
        w, h = round(side * KINDS[kind].width), round(side * KINDS[kind].height)
        x = column * cell_w + (cell_w - w) // 2 + _shift(rng, cell_w, w)
        y = row * cell_h + (cell_h - h) // 2 + _shift(rng, cell_h, h)
        things.append(Thing(kind, look[1], size, x, y, w, h))
    return Scene(width, height, rng.choice(list(PLACES)), tuple(things))


def _shift(rng: Random, cell: int, side: int) -> int:
    # At most a fifth of the cell, so that "left" and "middle" never come close to each other.
    limit = max(0, min((cell - side) // 2 - 1, cell // 5))
    return rng.randint(-limit, limit)


def parts(thing: Thing) -> Iterator[tuple[str, Box]]:
    """Names and pixel boxes of a thing's parts."""
    for part in KINDS[thing.kind].parts:
        u, v, w, h = part.box
        x, y = thing.x + round(u * thing.w), thing.y + round(v * thing.h)
        yield part.name, (x, y, max(3, round(w * thing.w)), max(3, round(h * thing.h)))


def draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, scale: int = SCALE) -> None:
    """Draw one thing on a canvas that is `scale` times as large as the picture."""
    kind, fill = KINDS[thing.kind], COLORS[thing.color]
    x, y, w, h = (scale * value for value in thing.box)
    edge = (x, y, x + w - 1, y + h - 1)
    if thing.kind == "ball":
        draw.ellipse(edge, fill=fill, outline=OUTLINE, width=scale)
    else:
        inner = [(x + u * (w - 1), y + v * (h - 1)) for u, v in kind.outline]
        draw.polygon(inner, fill=fill)
        draw.line([*inner, inner[0], inner[1]], fill=OUTLINE, width=scale, joint="curve")
    if thing.kind == "box":
        seam = GREY if thing.color == "black" else OUTLINE
        draw.line([(x, y + 0.26 * h), (x + w - 1, y + 0.26 * h)], fill=seam, width=scale)
    for part in kind.parts:
        if part.fill is None:
            continue
        u, v, pw, ph = part.box
        spot = (x + u * w, y + v * h, x + (u + pw) * w - 1, y + (v + ph) * h - 1)
        if part.name == "roof":
            draw.polygon([(spot[0], spot[3]), ((spot[0] + spot[2]) / 2, spot[1]), (spot[2], spot[3])], fill=part.fill)
        elif part.round:
            draw.ellipse(spot, fill=part.fill)
        else:
            draw.rectangle(spot, fill=part.fill)


def background(scene: Scene) -> Image.Image:
    """The empty place at SCALE times the picture's size."""
    place = PLACES[scene.place]
    canvas = Image.new("RGB", (scene.width * SCALE, scene.height * SCALE), place.above_color)
    ground = (0, scene.horizon * SCALE, scene.width * SCALE, scene.height * SCALE)
    ImageDraw.Draw(canvas).rectangle(ground, fill=place.below_color)
    return canvas


def draw_scene(scene: Scene) -> Image.Image:
    canvas = background(scene)
    draw = ImageDraw.Draw(canvas)
    for thing in scene.things:
        draw_thing(draw, thing)
    return canvas.reduce(SCALE)
