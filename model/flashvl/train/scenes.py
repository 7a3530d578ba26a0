"""Drawn scenes: anti-aliased shapes in clear colours, and questions whose answers are balanced.

Each picture is drawn for one leading question: the answer is drawn first, uniformly, and the scene
is then built to make it true. A model that ignores the picture is therefore right only by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from flashvl.train.canvas import (
    COLOURS,
    PATCH,
    SHAPES,
    SQUARE,
    WIDE,
    Example,
    Mark,
    Turn,
    paper,
    photograph,
    targets_from,
)

RGB = {
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (35, 75, 225),
    "yellow": (245, 220, 30),
    "purple": (145, 45, 175),
    "orange": (245, 130, 20),
}
KINDS = ("colour", "shape", "count", "relation")
KIND_SHARES = (0.2, 0.2, 0.27, 0.33)

ASK_COLOUR = ("What colour is the {shape}?", "What color is the {shape}?")
ASK_SHAPE = ("What shape is {colour}?", "Which shape is {colour}?")
COUNT_SHAPE = "How many {plural} are there?"
COUNT_COLOUR = "How many {colour} shapes are there?"
COUNT_ALL = "How many shapes are there?"
ASK_RELATION = "Is the {first} {relation} the {second}?"
ASK_OBJECT = "What is {relation} the {second}?"
ASK_PLACE = "Where is the {first}?"
# thirds of the picture, row then column; a trained step towards relations, never scored
PLACES = (
    ("top left", "top", "top right"),
    ("left", "middle", "right"),
    ("bottom left", "bottom", "bottom right"),
)
# relation -> (axis of Mark.centre, sign): "left of" means a smaller x
RELATIONS = {"left of": (1, -1), "right of": (1, 1), "above": (0, -1), "below": (0, 1)}
CLEAR = 8  # px between centres along the axis before a relation is asked about

# A quarter of the pictures are square and hold 0..3; these shares make counts uniform overall.
WIDE_COUNTS = (0.137, 0.137, 0.137, 0.137, 0.226, 0.226)
# A later count question picks among the counts the scene offers; few scenes offer a large one.
RARE_COUNTS = (1.0, 1.0, 4.0, 10.0, 25.0, 60.0)

SUPERSAMPLE = 8
TURNS = (-8, 0, 8)  # degrees
GAP = 2  # px between boxes
MOST_TURNS = 5


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


@dataclass(frozen=True)
class Plan:
    """What to draw: (colour, shape) of each object, and the leading question where it is fixed."""

    things: tuple[tuple[str, str], ...]
    lead: Turn | None = None


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points of [-1, 1]^2 (y down) lie in the shape."""
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.86
    if shape == "triangle":
        return (y <= 0.85) & (y >= -0.95 + 1.85 * abs(x))
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.28) & (np.maximum(abs(x), abs(y)) <= 0.97)
    # A five-pointed star: fold the plane into one tenth of a turn, then one straight edge from
    # the point (radius 1) to the notch (radius 0.4).
    around = np.arctan2(x, -y)
    folded = abs((around + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(folded), radius * np.sin(folded)
    nx, ny = 0.4 * np.cos(np.pi / 5), 0.4 * np.sin(np.pi / 5)
    return (1 - px) * ny - py * (1 - nx) >= 0


@lru_cache(maxsize=1024)
def shape_mask(shape: str, side: int, turn: int) -> np.ndarray:
    """Coverage of the shape on side x side px: float32 in 0..1."""
    fine = (np.arange(side * SUPERSAMPLE) + 0.5) / (side * SUPERSAMPLE / 2) - 1
    y, x = np.meshgrid(fine, fine, indexing="ij")
    angle = np.deg2rad(turn)
    # 1.06 keeps the corners of a turned shape on its mask
    x, y = (
        1.06 * (x * np.cos(angle) + y * np.sin(angle)),
        1.06 * (y * np.cos(angle) - x * np.sin(angle)),
    )
    dense = _inside(shape, x, y).reshape(side, SUPERSAMPLE, side, SUPERSAMPLE)
    return dense.mean((1, 3), dtype=np.float32)


def pick(rng: np.random.Generator, items: Sequence[str], without: str | None = None) -> str:
    """A uniform choice among items, leaving one out."""
    rest = [item for item in items if item != without]
    return rest[int(rng.integers(len(rest)))]


def most_objects(size: tuple[int, int]) -> int:
    return 3 if size == SQUARE else 5


def plan_colour(rng: np.random.Generator, most: int) -> Plan:
    """Exactly one object of the asked shape; its colour is uniform."""
    shape = pick(rng, SHAPES)
    rest = rng.integers(0, most)
    others = [(pick(rng, COLOURS), pick(rng, SHAPES, without=shape)) for _ in range(rest)]
    question = ASK_COLOUR[int(rng.random() < 0.2)].format(shape=shape)
    answer = pick(rng, COLOURS)
    return Plan(((answer, shape), *others), (question, answer, "colour"))


def plan_shape(rng: np.random.Generator, most: int) -> Plan:
    """Exactly one object of the asked colour; its shape is uniform."""
    colour = pick(rng, COLOURS)
    rest = rng.integers(0, most)
    others = [(pick(rng, COLOURS, without=colour), pick(rng, SHAPES)) for _ in range(rest)]
    question = ASK_SHAPE[int(rng.random() < 0.2)].format(colour=colour)
    answer = pick(rng, SHAPES)
    return Plan(((colour, answer), *others), (question, answer, "shape"))


def plan_count(rng: np.random.Generator, size: tuple[int, int], count: int | None) -> Plan:
    """The count is drawn first, then that many matching objects and some that don't match."""
    most = most_objects(size)
    if count is None:
        count = int(rng.choice(6, p=WIDE_COUNTS)) if size == WIDE else int(rng.integers(most + 1))
    way = rng.random()
    if way < 0.2 and count > 0:
        things = [(pick(rng, COLOURS), pick(rng, SHAPES)) for _ in range(count)]
        return Plan(tuple(things), (COUNT_ALL, str(count), "count"))
    rest = int(rng.integers(0 if count else 1, most - count + 1))
    if way < 0.6:
        shape = pick(rng, SHAPES)
        things = [(pick(rng, COLOURS), shape) for _ in range(count)]
        things += [(pick(rng, COLOURS), pick(rng, SHAPES, without=shape)) for _ in range(rest)]
        question = COUNT_SHAPE.format(plural=plural(shape))
    else:
        colour = pick(rng, COLOURS)
        things = [(colour, pick(rng, SHAPES)) for _ in range(count)]
        things += [(pick(rng, COLOURS, without=colour), pick(rng, SHAPES)) for _ in range(rest)]
        question = COUNT_COLOUR.format(colour=colour)
    return Plan(tuple(things), (question, str(count), "count"))


def plan_relation(rng: np.random.Generator, most: int) -> Plan:
    """Two or more objects that all have different names."""
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    chosen = rng.permutation(len(names))[: rng.integers(2, most + 1)]
    return Plan(tuple(names[i] for i in chosen))


def place(
    rng: np.random.Generator, sides: list[int], size: tuple[int, int]
) -> list[tuple[int, int]] | None:
    """(top, left) of each box, at least GAP px apart; None if chance finds no room."""
    places: list[tuple[int, int]] = []
    for index, side in enumerate(sides):
        tries = rng.integers(1, (size[0] - side, size[1] - side), (60, 2))
        for top, left in tries.tolist():
            if all(
                top >= t + s + GAP
                or t >= top + side + GAP
                or left >= x + s + GAP
                or x >= left + side + GAP
                for (t, x), s in zip(places, sides[:index], strict=True)
            ):
                places.append((top, left))
                break
        else:
            return None
    return places


def ask_colour(rng: np.random.Generator, marks: tuple[Mark, ...]) -> Turn | None:
    shapes = [m.name for m in marks]
    single = [m for m in marks if shapes.count(m.name) == 1]
    if not single:
        return None
    mark = single[int(rng.integers(len(single)))]
    question = ASK_COLOUR[int(rng.random() < 0.2)].format(shape=mark.name)
    return question, str(mark.colour), "colour"


def ask_shape(rng: np.random.Generator, marks: tuple[Mark, ...]) -> Turn | None:
    colours = [m.colour for m in marks]
    single = [m for m in marks if colours.count(m.colour) == 1]
    if not single:
        return None
    mark = single[int(rng.integers(len(single)))]
    question = ASK_SHAPE[int(rng.random() < 0.2)].format(colour=mark.colour)
    return question, mark.name, "shape"


def ask_count(rng: np.random.Generator, marks: tuple[Mark, ...]) -> Turn:
    offered: dict[int, list[str]] = {len(marks): [COUNT_ALL]}
    for shape in SHAPES:
        count = sum(m.name == shape for m in marks)
        offered.setdefault(count, []).append(COUNT_SHAPE.format(plural=plural(shape)))
    for colour in COLOURS:
        count = sum(m.colour == colour for m in marks)
        offered.setdefault(count, []).append(COUNT_COLOUR.format(colour=colour))
    counts = sorted(offered)
    weights = np.array([RARE_COUNTS[c] for c in counts])
    count = counts[int(rng.choice(len(counts), p=weights / weights.sum()))]
    return pick(rng, offered[count]), str(count), "count"


def ask_relation(rng: np.random.Generator, marks: tuple[Mark, ...]) -> Turn | None:
    """Yes and no are equally likely for every wording: each clear pair can be asked both ways."""
    names = [f"{m.colour} {m.name}" for m in marks]
    named = [i for i, name in enumerate(names) if names.count(name) == 1]
    relation = pick(rng, tuple(RELATIONS))
    axis, sign = RELATIONS[relation]
    pairs = [
        (i, j)
        for i in named
        for j in named
        if sign * (marks[i].centre[axis] - marks[j].centre[axis]) >= CLEAR
    ]
    if not pairs:
        return None
    first, second = pairs[int(rng.integers(len(pairs)))]
    if len(marks) == 2 and rng.random() < 0.2:
        return ASK_OBJECT.format(relation=relation, second=names[second]), names[first], "object"
    answer = "yes"
    if rng.random() < 0.5:
        first, second, answer = second, first, "no"
    question = ASK_RELATION.format(first=names[first], relation=relation, second=names[second])
    return question, answer, "relation"


def ask_place(
    rng: np.random.Generator, marks: tuple[Mark, ...], size: tuple[int, int]
) -> Turn | None:
    names = [f"{m.colour} {m.name}" for m in marks]
    single = [i for i, name in enumerate(names) if names.count(name) == 1]
    if not single:
        return None
    chosen = single[int(rng.integers(len(single)))]
    row, column = (
        int(3 * along / side) for along, side in zip(marks[chosen].centre, size, strict=True)
    )
    return ASK_PLACE.format(first=names[chosen]), PLACES[row][column], "place"


ASK = {"colour": ask_colour, "shape": ask_shape, "count": ask_count, "relation": ask_relation}


def gives_away(turn: Turn, earlier: list[Turn]) -> bool:
    """Whether the earlier turns' text alone answers this one, so that looking is not needed."""
    question, answer, kind = turn
    if kind in ("colour", "shape"):
        asked = next(word for word in (*SHAPES, *COLOURS) if f" {word}?" in question)
        return any(asked in q + a and answer in q + a for q, a, _ in earlier)
    if kind in ("relation", "object"):
        axis = "left of", "right of"
        across = any(word in question for word in axis)
        words = sorted(_names(f"{question} {answer}"))
        return any(
            words == sorted(_names(f"{q} {a}")) and across == any(word in q for word in axis)
            for q, a, _ in earlier
        )
    return any(question == q for q, _, _ in earlier)


def _names(text: str) -> list[str]:
    return [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" in text]


def make_turns(
    rng: np.random.Generator,
    marks: tuple[Mark, ...],
    lead: Turn | None,
    kind: str,
    size: tuple[int, int],
) -> list[Turn]:
    """Up to five turns: the leading question, then other kinds (relations may come thrice)."""
    turns = [lead] if lead else []
    while not turns:  # two objects may be clear along one axis only: then another relation is drawn
        turn = ask_relation(rng, marks)
        turns = [turn] if turn else []
    others = ["place", *["relation"] * (3 if len(marks) > 1 else 0)]
    others += [k for k in KINDS[:3] if k != kind]
    for index in rng.permutation(len(others)):
        if len(turns) == MOST_TURNS:
            break
        asked = others[index]
        turn = ask_place(rng, marks, size) if asked == "place" else ASK[asked](rng, marks)
        if turn and not gives_away(turn, turns):
            turns.append(turn)
    return turns


def background(rng: np.random.Generator) -> np.ndarray:
    """Near-grey: light, middle or dark, so never one of the objects' colours."""
    low, high = ((205, 250), (105, 140), (8, 45))[int(rng.choice(3, p=(0.5, 0.2, 0.3)))]
    return np.clip(rng.uniform(low, high) + rng.uniform(-6, 6, 3), 0, 255)


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int] = WIDE,
    kind: str | None = None,
    count: int | None = None,
) -> Example:
    """1 to 5 shapes without overlap and one to five turns, the leading one of the given kind.

    count fixes the answer of a leading count question (0..5, at most 3 on a square canvas).
    """
    kind = kind or KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
    most = most_objects(size)
    if kind == "colour":
        plan = plan_colour(rng, most)
    elif kind == "shape":
        plan = plan_shape(rng, most)
    elif kind == "count":
        plan = plan_count(rng, size, count)
    else:
        plan = plan_relation(rng, most)
    things = [plan.things[i] for i in rng.permutation(len(plan.things))]
    low, high = (16, 27) if len(things) <= 3 else (16, 23)
    places = None
    while places is None:
        sides = rng.integers(low, high, len(things)).tolist()
        places = place(rng, sides, size)
    sheet = paper(rng, size, background(rng))
    marks = []
    coverage = np.zeros((len(things), size[0] // PATCH, size[1] // PATCH), np.float32)
    for index, ((colour, shape), side, (top, left)) in enumerate(
        zip(things, sides, places, strict=True)
    ):
        mask = shape_mask(shape, side, TURNS[int(rng.integers(len(TURNS)))])
        ink = np.array(RGB[colour], np.float32) + rng.uniform(-12, 12, 3).astype(np.float32)
        window = sheet[top : top + side, left : left + side]
        window += mask[:, :, None] * (ink - window)
        alone = np.zeros(size, np.float32)
        alone[top : top + side, left : left + side] = mask
        blocks = alone.reshape(size[0] // PATCH, PATCH, size[1] // PATCH, PATCH)
        coverage[index] = blocks.mean((1, 3))
        marks.append(Mark(shape, colour, top, left, top + side, left + side))
    drawn = tuple(marks)
    turns = make_turns(rng, drawn, plan.lead, kind, size)
    return Example(photograph(rng, sheet), tuple(turns), targets_from(drawn, coverage, size), drawn)
