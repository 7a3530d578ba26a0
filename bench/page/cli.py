"""The options of `flashvl-bench report`; nothing heavy is imported before they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"


def arguments(commands: Any) -> None:
    """The options of the command."""
    parser = commands.add_parser("report", help="result files as one page, a table, a picture")
    parser.set_defaults(run=from_options)
    parser.add_argument("files", nargs="+", metavar="FILE.json", help="of ops, model or profile")
    parser.add_argument(
        "--html", metavar="FILE", help="the page (default: report.html, if nothing else is asked)"
    )
    parser.add_argument("--speed", metavar="FILE", help="write the table of docs/speed.md here")
    parser.add_argument("--picture", metavar="FILE", help="write the picture, an SVG, here")
    parser.add_argument(
        "--docs", default=str(DOCS), metavar="FOLDER", help="holds numerics.md and ladders/"
    )


def from_options(options: Any) -> int:
    """The command line."""
    from flashvl_bench.page import html

    page = options.html
    if not (page or options.speed or options.picture):
        page = "report.html"
    outputs = {"page": page, "speed": options.speed, "picture": options.picture}
    return html.run(options.files, outputs, options.docs)
