"""A flame graph as one SVG file: no script, nothing fetched, light and dark (Gregg, CACM 2016).

Read from the top: the answer, its stages, the ops of each, the shapes of each op. Width is time.
Ops are in one colour, everything outside of them in grey, so the share of either is seen at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from flashvl_bench.profile.record import ROOT
from flashvl_bench.profile.trace import Stack
from flashvl_bench.report import duration

WIDTH, ROW, TOP, MARGIN = 1200, 26, 58, 12
CHARACTER = 7.2  # px of a letter at 12 px, about
NARROWEST = 0.5  # px: what is thinner is not drawn; its parent shows its time

STYLE = """
.flame { background: #fff; font: 12px system-ui, sans-serif; }
.flame text { fill: #1f2328; } .flame .faint { fill: #59636e; }
.flame .title { font-size: 15px; font-weight: 600; } .flame rect { stroke: #fff; }
.flame .stage { fill: #d9dee3; } .flame .op { fill: #f3a469; } .flame .shape { fill: #f9cfae; }
@media (prefers-color-scheme: dark) {
.flame { background: #0d1117; } .flame text { fill: #e6edf3; } .flame .faint { fill: #9198a1; }
.flame .stage { fill: #30363d; } .flame .op { fill: #a8561b; } .flame .shape { fill: #6f3d19; }
.flame rect { stroke: #0d1117; }
}
"""


@dataclass
class _Node:
    name: str
    own: float = 0.0
    inner: dict[str, _Node] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.own + sum(node.seconds for node in self.inner.values())

    @property
    def depth(self) -> int:
        return 1 + max((node.depth for node in self.inner.values()), default=0)


def svg(paths: dict[Stack, float], ops: frozenset[str], title: str) -> str:
    """The flame graph of seconds a path. ops: names drawn as ops; in them lie shapes."""
    root = _Node(ROOT)
    for path, seconds in paths.items():
        node = root
        for name in path[1:]:
            node = node.inner.setdefault(name, _Node(name))
        node.own += max(seconds, 0.0)
    height = TOP + ROW * root.depth + MARGIN
    parts: list[str] = []
    total = root.seconds or 1.0
    _draw(parts, root, (MARGIN, TOP), (WIDTH - 2 * MARGIN) / total, total, ops, "stage")
    legend = (
        f'<text class="faint" x="{MARGIN}" y="44">width is time, {duration(total)} in all; '
        f"orange is spent in ops, grey outside of them</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="flame" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">'
        f'<style>{STYLE}</style><text class="title" x="{MARGIN}" y="24">{escape(title)}</text>'
        f"{legend}{''.join(parts)}</svg>\n"
    )


def _draw(
    parts: list[str],
    node: _Node,
    at: tuple[float, float],
    scale: float,
    total: float,
    ops: frozenset[str],
    kind: str,
) -> None:
    """A box and those below it. scale: px a second."""
    (left, top), width = at, node.seconds * scale
    if width < NARROWEST:
        return
    kind = "op" if node.name in ops else "shape" if kind in ("op", "shape") else "stage"
    told = f"{node.name}: {duration(node.seconds)}, {node.seconds / total:.1%}"
    parts.append(
        f'<g><title>{escape(told)}</title><rect class="{kind}" x="{left:.2f}" y="{top}" '
        f'width="{width:.2f}" height="{ROW}" rx="2"/>'
    )
    room = int((width - 8) / CHARACTER)
    label = f"{node.name}  {duration(node.seconds)}"
    if room < len(label):
        label = node.name if len(node.name) <= room else f"{node.name[: room - 1]}…"
    if room >= 4:
        parts.append(f'<text x="{left + 4:.2f}" y="{top + 17}">{escape(label)}</text>')
    parts.append("</g>")
    for inner in sorted(node.inner.values(), key=lambda n: -n.seconds):
        _draw(parts, inner, (left, top + ROW), scale, total, ops, kind)
        left += inner.seconds * scale
