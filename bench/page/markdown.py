"""The Markdown of docs/ladders as HTML: headings, paragraphs, lists, tables, code and emphasis.

Only what those pages use; everything else is text. All text is escaped, and links keep their words
only, because their targets lie beside the Markdown, not beside the report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html import escape

_INLINE: tuple[tuple[str, str], ...] = (
    (r"\*\*(.+?)\*\*", r"<strong>\1</strong>"),
    (r"(?<![\w*])\*([^*\s][^*]*)\*", r"<em>\1</em>"),
    (r"\[([^\]]+)\]\([^)]*\)", r"\1"),
)
_RULE = re.compile(r"^\|?\s*:?-{2,}")


def html(text: str, level: int = 3) -> str:
    """`text` as HTML whose largest heading is <h`level`>."""
    return "\n".join(_blocks(text.splitlines(), level))


def inline(text: str) -> str:
    """Code, emphasis and links of one paragraph."""
    parts = re.split(r"`([^`]+)`", text)
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"<code>{escape(part)}</code>"
            continue
        shown = escape(part, quote=False)
        for pattern, by in _INLINE:
            shown = re.sub(pattern, by, shown)
        parts[i] = shown
    return "".join(parts)


def _blocks(lines: list[str], level: int) -> Iterator[str]:
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip():
            at += 1
        elif line.startswith("```"):
            end = _until(lines, at + 1, lambda each: each.startswith("```"))
            yield f"<pre><code>{escape(chr(10).join(lines[at + 1 : end]))}</code></pre>"
            at = end + 1
        elif line.startswith("#"):
            depth = len(line) - len(line.lstrip("#"))
            tag = f"h{min(level + max(depth - 2, 0), 6)}"
            yield f"<{tag}>{inline(line.lstrip('# '))}</{tag}>"
            at += 1
        elif line.startswith("|") and at + 1 < len(lines) and _RULE.match(lines[at + 1]):
            end = _until(lines, at, lambda each: not each.startswith("|"))
            yield _table(lines[at], lines[at + 2 : end])
            at = end
        elif re.match(r"[-*] ", line):
            end = _until(lines, at, lambda each: not each.strip())
            yield _list(lines[at:end])
            at = end
        else:
            end = _until(lines, at, lambda each: not each.strip() or each.startswith(("|", "```")))
            yield f"<p>{inline(' '.join(part.strip() for part in lines[at:end]))}</p>"
            at = end


def _until(lines: list[str], start: int, stop: Callable[[str], bool]) -> int:
    return next((i for i in range(start, len(lines)) if stop(lines[i])), len(lines))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(head: str, body: list[str]) -> str:
    names = "".join(f"<th>{inline(cell)}</th>" for cell in _cells(head))
    rows = "".join(
        "<tr>" + "".join(f"<td>{inline(cell)}</td>" for cell in _cells(line)) + "</tr>"
        for line in body
    )
    head = f"<thead><tr>{names}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>'


def _list(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if re.match(r"[-*] ", line):
            items.append(line[2:].strip())
        else:
            items[-1] += f" {line.strip()}"
    return "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>"
