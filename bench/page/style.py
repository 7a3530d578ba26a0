"""The look of a report, and its one script: tables that sort and filter. It reads without it."""

from __future__ import annotations

from flashvl_bench.page import charts

CSS = (
    f"""
:root {{ color-scheme: light dark; {charts.LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {charts.DARK} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main, header, nav ul { max-width: 1160px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; padding-bottom: 12px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 52px 0 6px; letter-spacing: -0.01em; }
h3 { font-size: 16px; margin: 26px 0 6px; }
h4 { font-size: 14px; margin: 18px 0 4px; }
p { max-width: 74ch; margin: 6px 0 12px; }
.lead, .note { color: var(--faint); }
.note { font-size: 13px; }
code, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
code { background: var(--panel); padding: 1px 4px; border-radius: 4px; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px;
  overflow-x: auto; }
pre code { padding: 0; background: none; }
nav { position: sticky; top: 0; z-index: 3; background: var(--ground);
  border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: 20px; list-style: none; overflow-x: auto; white-space: nowrap;
  scrollbar-width: none; }
nav a { display: block; padding: 10px 0; color: var(--faint); text-decoration: none;
  font-size: 14px; }
nav a:hover, nav a:focus-visible { color: var(--accent-ink); }
section { scroll-margin-top: 52px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 18px 0 4px; padding: 0; list-style: none; }
.facts li { border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.facts strong { display: block; font-size: 24px; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.facts span { color: var(--faint); font-size: 13px; line-height: 1.4; display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 28px 36px; margin: 14px 0; }
figure { margin: 0; }
.chart { width: 100%; height: auto; display: block; max-width: 560px; }
.scroll { overflow-x: auto; } .scroll svg { min-width: 760px; width: 100%; height: auto; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; margin: 10px 0 16px; }
.wide.tall { max-height: 70vh; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 9px; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
tr:last-child > * { border-bottom: 0; }
thead th { position: sticky; top: 0; background: var(--panel); font-weight: 600; z-index: 1; }
.data td:nth-child(2) { max-width: 230px; overflow: hidden; text-overflow: ellipsis; }
.data td:first-child { position: sticky; left: 0; background: var(--ground); }
.data th:first-child { left: 0; z-index: 2; }
td.n, th.n { text-align: right; }
td.why { white-space: normal; min-width: 240px; color: var(--bad); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: "\\2195"; opacity: 0.35; padding-left: 4px; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
.find { width: 100%; max-width: 340px; padding: 8px 12px; font: inherit; font-size: 14px;
  color: inherit; background: var(--ground); border: 1px solid var(--line); border-radius: 8px; }
.bar { display: inline-block; width: 40px; height: 8px; border-radius: 4px; vertical-align: 1px;
  background: var(--grid); margin-left: 8px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--accent); }
.sides { display: grid; grid-template-columns: minmax(90px, max-content) 1fr max-content;
  gap: 3px 12px; align-items: center; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.sides i { display: block; height: 12px; border-radius: 3px; background: var(--plain);
  min-width: 2px; opacity: 0.75; }
.sides .own { color: var(--accent-ink); font-weight: 600; }
.sides i.own { background: var(--accent); opacity: 1; }
.sides .why { grid-column: 2 / 4; color: var(--faint); font-size: 12.5px; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 10px; padding: 0 16px; margin: 10px 0; }
summary { cursor: pointer; padding: 11px 0; font-weight: 600; }
details[open] { padding-bottom: 10px; }
footer { max-width: 1160px; margin: 56px auto 40px; padding: 0 20px; color: var(--faint);
  font-size: 13px; }
@media (max-width: 640px) {
  main, header, nav ul, footer { padding-left: 14px; padding-right: 14px; }
  h1 { font-size: 23px; } h2 { margin-top: 40px; }
  .facts { grid-template-columns: 1fr 1fr; }
  th, td { padding: 6px 9px; } .data td:nth-child(2) { max-width: 130px; }
}
@media print { nav, .find { display: none; } .wide.tall { max-height: none; } }
"""
    + charts.STYLE
)

SCRIPT = """
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.ariaSort === "ascending" || (!head.ariaSort && head.className === "n");
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column] ? row.cells[column].dataset.v ?? "" : "";
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // without a value: last
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  }));
}
for (const find of document.querySelectorAll("input.find")) {
  const body = document.getElementById(find.dataset.table).tBodies[0];
  find.addEventListener("input", () => {
    const words = find.value.toLowerCase().split(/\\s+/);
    for (const row of body.rows)
      row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
  });
}
"""
