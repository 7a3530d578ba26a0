"""The answer to a question about a scene, worked out by other means than the generator's."""

from __future__ import annotations

import re

from flashvl.train.canvas import SHAPES, Mark


def recount(question: str, marks: tuple[Mark, ...], size: tuple[int, int]) -> str:
    """The answer, from the object list of a picture of `size` (H, W) px."""

    def find(name: str) -> Mark:
        (only,) = [m for m in marks if f"{m.colour} {m.name}" == name]
        return only

    def holds(first: Mark, relation: str, second: Mark) -> bool:
        dx = (first.left + first.right) / 2 - (second.left + second.right) / 2
        dy = (first.top + first.bottom) / 2 - (second.top + second.bottom) / 2
        along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
        assert abs(along) >= 8, "too close to call"
        return along > 0

    where = "(left of|right of|above|below)"
    if found := re.fullmatch(r"What colou?r is the (\w+)\?", question):
        (only,) = [m for m in marks if m.name == found[1]]
        return str(only.colour)
    if found := re.fullmatch(r"(?:What|Which) shape is (\w+)\?", question):
        (only,) = [m for m in marks if m.colour == found[1]]
        return only.name
    if question == "How many shapes are there?":
        return str(len(marks))
    if found := re.fullmatch(r"How many (\w+) shapes are there\?", question):
        return str(sum(m.colour == found[1] for m in marks))
    if found := re.fullmatch(r"How many (\w+?)(?:es|s) are there\?", question):
        name = next(s for s in SHAPES if s in (found[1], found[1] + "e"))
        return str(sum(m.name == name for m in marks))
    if found := re.fullmatch(rf"Is the (\w+ \w+) {where} the (\w+ \w+)\?", question):
        return "yes" if holds(find(found[1]), found[2], find(found[3])) else "no"
    if found := re.fullmatch(r"Where is the (\w+ \w+)\?", question):
        mark = find(found[1])
        thirds = [
            (first + last) / 2 * 3 // side
            for first, last, side in (
                (mark.top, mark.bottom, size[0]),
                (mark.left, mark.right, size[1]),
            )
        ]
        words = [("top", "", "bottom")[int(thirds[0])], ("left", "", "right")[int(thirds[1])]]
        return " ".join(filter(None, words)) or "middle"
    found = re.fullmatch(rf"What is {where} the (\w+ \w+)\?", question)
    assert found and len(marks) == 2, question
    (other,) = [m for m in marks if m is not find(found[2])]
    assert holds(other, found[1], find(found[2]))
    return f"{other.colour} {other.name}"
