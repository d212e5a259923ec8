"""The style sheet and the script of report.html: both stand in the file, nothing is loaded."""

CSS = """
:root { --ink: #22262b; --soft: #5a616b; --rule: #dfe2e6; --paper: #fff; --wash: #f6f7f8;
        --better: #005b8f; --worse: #a84300; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 32px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 18px; }
h2 { font-size: 19px; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule); }
p { max-width: 86ch; margin: 0 0 12px; }
p.lead { font-size: 18px; line-height: 1.5; max-width: 80ch; }
ul { max-width: 100ch; margin: 8px 0 16px; padding-left: 22px; }
li { margin: 3px 0; }
ul.warning { list-style: none; padding: 10px 16px; background: #fdf4e7;
             border-left: 4px solid #e69f00; }
.scroll { overflow-x: auto; margin: 6px 0 24px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; padding: 0 0 6px; color: var(--soft); }
th, td { padding: 4px 10px; text-align: left; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 4px; }
th { border-bottom: 2px solid var(--rule); font-weight: 600; vertical-align: bottom; }
td { border-bottom: 1px solid #eceef0; }
tbody tr:hover td { background-color: var(--wash); }
table.dense { font-size: 12.5px; }
table.dense th, table.dense td { padding: 4px 6px; }
table.dense th { white-space: normal; }
table.dense th:not([aria-sort]) button::after { content: none; }
.number { text-align: right; }
th button { all: unset; cursor: pointer; font: inherit; }
th button:focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
th button::after { content: "\\2195"; opacity: .3; padding-left: 4px; font-weight: 400; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
.better { color: var(--better); font-weight: 600; }
.worse { color: var(--worse); font-weight: 600; }
.quiet { color: var(--soft); }
figure { margin: 10px 0 26px; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 13.5px; max-width: 100ch; margin-top: 6px; }
details { margin: 6px 0 24px; }
summary { cursor: pointer; color: var(--better); margin-bottom: 6px; }
@media print { main { max-width: none; padding: 0; } h2 { break-after: avoid; }
               th button::after { content: ""; } }
"""

# Sorts by data-sort where a cell has one (numbers), else by its text; a second click turns round.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), row = head.parentElement;
    const body = head.closest("table").tBodies[0];
    const column = [...row.children].indexOf(head);
    const numbers = head.classList.contains("number");
    const turned = head.getAttribute("aria-sort") === (numbers ? "descending" : "ascending");
    const up = numbers === turned;
    const key = (line) => line.children[column].dataset.sort ?? line.children[column].textContent;
    const compare = numbers
      ? (a, b) => Number(key(a)) - Number(key(b))
      : (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const lines = [...body.rows].sort((a, b) => (up ? compare(a, b) : compare(b, a)));
    body.append(...lines);
  });
}
"""
