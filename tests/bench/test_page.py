"""The report shows what the files say, escapes it, fetches nothing, and works in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from flashvl_bench import cli, schema
from flashvl_bench.page import charts, html, markdown
from flashvl_bench.page.data import ReportError, devices, ladders, numerics, plain_fraction
from flashvl_bench.page.speed import picture, speed_page
from tests.bench.test_compare import document as ops_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
HOSTILE = "</td><script>document.title='owned'</script><img src=//a.example/x onerror=alert(1)>"
VOID = {"meta", "input", "br", "hr", "img", "link"}
TITLES = ("Distance", "Roofline", "Speed", "Model", "Profile", "Machine", "Numerics", "Ladders")


def ops_document(cpu: str = "A CPU") -> dict[str, Any]:
    """Five ops in two dtypes, with one case that computes nothing, one that is wrong, and text in
    it that would break out of a page."""
    made = ops_run(0)
    made["machine"]["cpu"] = cpu
    made["ceilings"] = made["ceilings_end"] = {
        "read": 20e9, "copy": 16e9, "gemm": {"bf16": 8e11, "fp16": 1e9, "fp32": 9e10},
        "threads": 2, "loops": {"fma_f32": 1e11, "tiles_bf16": 1e12}, "torch_read": 18e9,
    }  # fmt: skip
    rows = []
    for i, row in enumerate(made["rows"][:20]):
        seconds, flops = row["median"], 5 * 10 ** (4 + i % 5) * (i % 5 > 0)
        row |= {
            "op": f"op{i % 5}", "sample": f"sample {i}", "dtype": "bf16" if i < 10 else "fp32",
            "flops": flops, "bytes_read": 10**6, "bytes_written": 10**6, "fraction": 0.04 * (i + 1),
            "bytes_per_second": 2e6 / seconds, "flops_per_second": flops / seconds,
        }  # fmt: skip
        rows.append(row)
    rows[3] |= {"status": "wrong", "reason": HOSTILE, "seconds": [], "plain_seconds": []}
    rows[3] |= {"median": None, "plain_median": None, "fraction": None}
    rows[4]["sample"] = HOSTILE
    made["rows"] = rows
    return made


def model_document() -> dict[str, Any]:
    made = {key: ops_document()[key] for key in ("machine", "ceilings", "ceilings_end", "version")}
    peer = {"name": "transformers", "status": "ok", "reason": "", "seconds": [0.2], "median": 0.2,
            "iqr": 0.0, "speedup": 2.0}  # fmt: skip
    absent = {**peer, "name": "openvino", "status": "absent", "reason": HOSTILE, "seconds": [],
              "median": None, "iqr": None, "speedup": None}  # fmt: skip
    part = {
        "part": "decode", "weights": "int8", "backend": "auto", "status": "ok", "reason": "",
        "bytes_read": 1, "bytes_written": 1, "flops": 1, "seconds": [0.1], "median": 0.1,
        "iqr": 0.0, "tokens_per_second": 10.0, "fraction": 0.6, "bound": "memory", "error": None,
        "peer_error": None, "cosine": 0.9999, "peers": [peer, absent],
    }  # fmt: skip
    settings = {
        "config": "static_2b", "weights": ["int8"], "dtype": "bf16", "backend": "auto",
        "peers": [], "prompt": 300, "tokens": 16, "repeats": 1, "layers": None, "parts": [],
    }  # fmt: skip
    made |= {"schema": "flashvl-bench/model", "settings": settings, "parts": [part]}
    return made | {"memory": [], "loading": []}


def profile_document() -> dict[str, Any]:
    made = {key: ops_document()[key] for key in ("machine", "ceilings", "ceilings_end", "version")}
    row = {
        "where": "prefill", "op": "linear", "shape": "4x8 8x8", "dtype": "fp32", "backend": "cpu",
        "kernel": "k", "calls": 3, "seconds": 0.7, "bytes_read": 1, "bytes_written": 1, "flops": 2,
        "fraction": 0.3, "bound": "memory",
    }  # fmt: skip
    rest = {"op": "outside of ops", "shape": "", "backend": "", "seconds": 0.3, "fraction": None}
    settings = {
        "config": "tiny", "image": "", "question": HOSTILE, "tokens": 8, "dtype": "fp32",
        "weights": "bf16", "backend": "auto", "device": "cpu", "repeats": 1, "layers": None,
        "nvtx": False,
    }  # fmt: skip
    made |= {"schema": "flashvl-bench/profile", "settings": settings, "rows": [row, row | rest]}
    return made | {"walls": {"recorded": 1.0, "op_by_op": 1.0, "usual": 0.9}}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """One result file of each kind, of one machine."""
    names = []
    for made in (ops_document(), model_document(), profile_document()):
        names.append(str(tmp_path / f"{made['schema'].rpartition('/')[2]}.json"))
        schema.write(made, names[-1])
    return names


@pytest.fixture
def page(files: list[str], tmp_path: Path) -> Path:
    target = tmp_path / "report.html"
    assert cli.main(["report", *files, "--html", str(target)]) == 0
    return target


class Tags(HTMLParser):
    """Counts elements, and finds what is not closed and what would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.fetched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.fetched += [
            str(value)
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action")
            and not str(value).startswith("#")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1


def test_page_is_whole_and_fetches_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert tags.open == [] and tags.fetched == []
    assert tags.count["script"] == 1 and tags.count.get("img", 0) == 0
    assert "url(" not in text and "@import" not in text and "default-src 'none'" in text
    assert text.count('<svg class="chart"') == 4 and text.count('class="flame"') == 1
    for title in TITLES:
        assert f">{title}</a>" in text
    assert "of the ceiling" in text and "openvino" in text and "transformers" in text


def test_every_row_and_page_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    made = ops_document()
    for row in made["rows"]:
        assert f">{row['op']}</td>" in text
    body = text[text.index('id="ops-1"') :].partition("</table>")[0]
    assert body.count("<tr>") == 1 + len(made["rows"])
    assert "wrong: &lt;/td&gt;&lt;script&gt;" in body
    exact = text[text.index('id="numerics"') :].partition("</table>")[0]
    assert exact.count("<tr>") == 1 + len(numerics(DOCS)) > 100
    assert text.count("<summary>") == len(ladders(DOCS)) == len(list(DOCS.glob("ladders/*.md")))


def test_what_a_file_says_stays_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img" not in text
    assert "owned" in unescape(text)


def test_points_stand_where_the_figures_say() -> None:
    body, width, _ = charts.distance(ops_document(), "fp32")
    row = ops_document()["rows"][10]
    told = f"op0 [{row['sample']}]"
    found = re.findall(r'<circle class="(\w+)" cx="([\d.]+)"[^>]*><title>([^<]+)', body)
    at = {kind: float(x) for kind, x, text in found if text.startswith(told)}
    scale = width - charts.NAMES - charts.VALUES
    for kind, share in (("ours", row["fraction"]), ("plain", plain_fraction(row))):
        shown = charts.NAMES + share * scale
        assert at[kind] == pytest.approx(shown, abs=0.1), kind


def test_roofline_has_every_case_that_computes() -> None:
    made = ops_document()
    body, _, _ = charts.roofline(made, "bf16")
    shown = [r for r in made["rows"] if r["dtype"] == "bf16" and r["status"] == "ok" and r["flops"]]
    assert body.count('class="ours"') == body.count('class="plain"') == len(shown) == 7
    assert "1 TFLOP/s (tiles_bf16)" in body and "20 GB/s" in body
    roof = re.search(r'class="roof" d="M([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+)', body)
    assert roof is not None and float(roof[4]) < float(roof[2])  # it rises
    highest = min(float(y) for y in re.findall(r'class="ours" cx="[\d.]+" cy="([\d.]+)"', body))
    assert highest > float(roof[4])  # no kernel is above the roof


def test_two_machines_are_two_sections_and_never_one(tmp_path: Path) -> None:
    names = []
    for cpu in ("One CPU", "Another CPU"):
        names.append(tmp_path / f"{cpu}.json")
        schema.write(ops_document(cpu), names[-1])
    found = devices(names)
    assert [device.machine["cpu"] for device in found] == ["One CPU", "Another CPU"]
    text = html.page(found, tmp_path)
    assert Tags(text).open == [] and 'id="ops-1"' in text and 'id="ops-2"' in text
    text = json.dumps({**ops_document(), "schema": "flashvl-bench/other"})
    other = tmp_path / "other.json"
    other.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schema.SHAPES, "flashvl-bench/other", schema.SHAPES["flashvl-bench/ops"])
        with pytest.raises(ReportError, match="is of `other`; a report shows ops"):
            devices([other])
    with pytest.raises(ReportError, match="are both `ops` of one machine"):
        devices([names[0], names[0]])


def test_speed_page_and_picture(files: list[str], tmp_path: Path) -> None:
    speed, drawn = tmp_path / "speed.md", tmp_path / "speed.svg"
    assert cli.main(["report", files[0], "--speed", str(speed), "--picture", str(drawn)]) == 0
    lines = [line for line in speed.read_text().splitlines() if line.startswith("| `op")]
    assert len(lines) == 19 and all(line.count(" | ") == 9 for line in lines)
    assert "<script" not in speed.read_text()
    text = drawn.read_text()
    ElementTree.fromstring(text)
    assert "prefers-color-scheme: dark" in text and "href" not in text
    assert not (tmp_path / "report.html").exists()


def test_speed_page_of_the_repository_is_current() -> None:
    results = sorted((DOCS / "results").glob("*.json"))
    if not results:
        assert not (DOCS / "speed.md").exists(), "speed.md has no results it could come from"
        pytest.skip("docs/results is empty: nothing was measured yet (make speed)")
    of_cpu = devices([DOCS / "results" / "ops.json"])
    for name, text in (("speed.md", speed_page(devices(results))), ("speed.svg", picture(of_cpu))):
        assert (DOCS / name).read_text(encoding="utf-8") == text, "run: make docs"


def test_files_that_cannot_be_shown(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, target = tmp_path / "damaged.json", str(tmp_path / "out.html")
    whole = Path(files[0]).read_text()
    for text, told in (
        (whole[:-300], "is not JSON"),
        (whole.replace(f'"version": {schema.VERSION}', '"version": 1'), "measure again"),
        ("{}", "not a result file"),
    ):
        damaged.write_text(text)
        assert cli.main(["report", str(damaged), "--html", target]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["report", files[1], "--picture", target]) == 2
    assert "needs a result file of `flashvl-bench ops`" in capsys.readouterr().err
    assert cli.main(["report", files[0], "--html", str(tmp_path / "no" / "x.html")]) == 2
    assert "No such file" in capsys.readouterr().err
    assert not Path(target).exists()


def test_markdown() -> None:
    text = "Some **bold** `a<b` and [a link](x.md).\n\n| a | b |\n|---|---|\n| 1 | `|` <i> |\n\n"
    text += "## Next\n\n- one\n  more\n- two\n\n```\nx < y\n```\n<script>no</script>"
    shown = markdown.html(text)
    assert "<strong>bold</strong> <code>a&lt;b</code> and a link." in shown
    assert "<h3>Next</h3>" in shown and "<li>one more</li><li>two</li>" in shown
    assert "<pre><code>x &lt; y</code></pre>" in shown and "<script>" not in shown
    assert shown.count("<th>") == 2 and "&lt;i&gt;" in shown
    for title, body in ladders(DOCS):
        Tags(markdown.html(body))
        assert title and "|---" not in markdown.html(body)


# ---- in a browser ------------------------------------------------------------------------------

WATCH = """<script>
const faults = [];
addEventListener("error", e => faults.push(e.message || `not loaded: ${e.target.tagName}`), true);
addEventListener("securitypolicyviolation", e => faults.push(`fetches ${e.blockedURI}`));
for (const kind of ["error", "warn"]) console[kind] = (...words) => faults.push(words.join(" "));
</script>"""
ASK = """<script>
addEventListener("load", () => setTimeout(() => {
  const column = n => [...document.querySelectorAll("#ops-1 tbody tr")].filter(row => !row.hidden)
    .map(row => row.cells[n] ? row.cells[n].dataset.v : "");
  const button = document.querySelectorAll("#ops-1 th button")[8];
  button.click(); const down = column(8);
  button.click(); const up = column(8);
  const find = document.querySelector("input[data-table=ops-1]");
  find.value = "op2 fp32"; find.dispatchEvent(new Event("input"));
  const box = element => element.getBoundingClientRect();
  parent.postMessage(JSON.stringify({
    faults, down, up, found: column(0), title: document.title,
    plots: [...document.querySelectorAll("svg")].map(e => [box(e).width, box(e).height]),
    tables: [...document.querySelectorAll("table.data")].map(e => e.tBodies[0].rows.length),
    wide: document.documentElement.scrollWidth - innerWidth,
    ground: getComputedStyle(document.body).backgroundColor,
  }), "*");
}, 50));
</script>"""
OUTER = """<!doctype html><iframe src="inner.html" style="width:{width}px;height:800px"></iframe>
<script>addEventListener("message", e => document.body.dataset.answer = e.data);</script>"""


def find_browser() -> str | None:
    """Chromium on the path, or the one that playwright installed."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell"):
        found = shutil.which(name)
        if found:
            return found
    kept = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    programs = [*kept.glob("chromium*/*/chrome"), *kept.glob("chromium*/*/*headless*shell")]
    return next((str(path) for path in sorted(programs) if path.is_file()), None)


def in_browser(page: str, folder: Path, width: int, dark: bool = False) -> dict[str, Any]:
    """What a page does in headless Chromium, in a window of `width` px."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium here: neither on the path nor one of playwright's")
    page = page.replace("<style>", WATCH + "<style>", 1).replace("</body>", ASK + "</body>")
    (folder / "inner.html").write_text(page, encoding="utf-8")
    outer = folder / "outer.html"
    outer.write_text(OUTER.format(width=width), encoding="utf-8")
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000",
        f"--user-data-dir={folder / 'profile'}", "--dump-dom", outer.as_uri(),
    ]  # fmt: skip
    if dark:
        command.insert(1, "--blink-settings=preferredColorScheme=0")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    answer = re.search(r'data-answer="([^"]*)"', done.stdout)
    if answer is None:
        pytest.skip(f"Chromium does not run here: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(unescape(answer[1]))
    return found


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_page_in_a_browser(page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    seen = in_browser(page.read_text(encoding="utf-8"), tmp_path, width, dark)
    assert seen["faults"] == [] and seen["title"] == html.TITLE
    assert len(seen["plots"]) == 5 and all(w > 300 and h > 80 for w, h in seen["plots"])
    assert seen["tables"] == [20, 2, len(numerics(DOCS))]
    assert seen["wide"] <= 0, "the page scrolls sideways"
    fractions = [float(value) for value in seen["down"] if value]
    assert fractions == sorted(fractions, reverse=True) and len(fractions) == 19
    assert seen["down"][-1] == seen["up"][-1] == "", "cases without a time come last"
    assert [float(value) for value in seen["up"] if value] == fractions[::-1]
    assert seen["found"] == ["op2", "op2"]
    assert seen["ground"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")


def test_a_browser_finds_faults(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = text.replace("</main>", '<img src="https://a.example/x.png"></main>')
    assert any("a.example" in f for f in in_browser(broken, tmp_path, 800)["faults"])
    broken = text.replace("const body = table.tBodies[0]", "absent(); const body = 0")
    assert any("absent" in f for f in in_browser(broken, tmp_path, 800)["faults"])
