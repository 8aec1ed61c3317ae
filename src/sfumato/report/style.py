"""The page's one style sheet: light, dark and print. Its colours and charts also serve charts in files of their own."""

COLOURS = """
:root {
  color-scheme: light dark;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --paper: #fdfcfa; --ink: #1f1d1a; --soft: #6d675f; --rule: #e5e0d8; --panel: #f6f3ee; --edge: rgb(0 0 0 / 9%);
  --tone-0: #9a4a22; --tone-1: #2d6a8a; --tone-2: #7a7f3a; --tone-3: #8d8579;
  --tone-4: #6b4c8a; --tone-5: #b0457b;
  --good: #3c7a52; --bad: #b23327; --bad-panel: #fbe9e6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #171614; --ink: #ebe6de; --soft: #a29a8e; --rule: #34312c; --panel: #201e1b; --edge: rgb(255 255 255 / 9%);
    --tone-0: #e39a68; --tone-1: #7fb9d6; --tone-2: #c0c578; --tone-3: #9c9486;
    --tone-4: #b79ad6; --tone-5: #e58fb8;
    --good: #82c79a; --bad: #f28b7d; --bad-panel: #3a211d;
  }
}
"""

CHARTS = """
svg.chart { display: block; width: 100%; height: auto; font: 12px var(--sans); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .span { stroke: var(--rule); stroke-width: 3; }
svg text { fill: var(--soft); }
svg text.row { fill: var(--ink); font-size: 13px; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .faint { opacity: 0.32; stroke-width: 1.1; }
svg .tone-0 { stroke: var(--tone-0); } svg .tone-1 { stroke: var(--tone-1); }
svg .tone-2 { stroke: var(--tone-2); } svg .tone-3 { stroke: var(--tone-3); }
svg .tone-4 { stroke: var(--tone-4); } svg .tone-5 { stroke: var(--tone-5); }
svg .mark { fill: var(--paper); stroke-width: 1.6; }
svg .mark.full { fill: var(--tone-0); }
svg line.mark { stroke-width: 2.2; }
svg .dot { fill: var(--paper); }
"""

_PAGE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 var(--sans);
  font-variant-numeric: tabular-nums;
}
main, header, footer { max-width: 1100px; margin: 0 auto; padding: 0 32px; }
header { padding-top: 80px; }
h1, h2, .big { font-family: var(--serif); }
h1 {
  font-size: 44px; line-height: 1.15; font-weight: 500; letter-spacing: -0.01em; margin: 0 0 16px;
  max-width: 20em;
}
h2 { font-size: 28px; line-height: 1.25; font-weight: 500; margin: 0 0 12px; }
h3 { font-size: 15px; font-weight: 600; margin: 40px 0 12px; }
p { margin: 0 0 16px; max-width: 44em; }
a { color: inherit; text-decoration-color: var(--rule); text-underline-offset: 3px; }
a:hover { text-decoration-color: currentColor; }
.eyebrow, .note, figcaption, .times { color: var(--soft); font-size: 13px; line-height: 1.5; }
.eyebrow { letter-spacing: 0.04em; margin: 0 0 8px; max-width: none; }
.lead { color: var(--soft); font-size: 18px; }
section { padding: 56px 0 8px; }
section + section { border-top: 1px solid var(--rule); margin-top: 48px; }

.headline {
  display: grid; grid-template-columns: repeat(4, 1fr); margin: 48px 0 56px; padding: 0;
  border-top: 1px solid var(--ink);
}
.headline div { padding: 20px 24px 0 0; }
.headline dt { color: var(--soft); font-size: 13px; line-height: 1.45; }
.headline dd { margin: 0; }
.big { font-size: 40px; line-height: 1.2; }
.big small { font-size: 20px; color: var(--soft); }

figure { margin: 0; }
figcaption { margin-top: 10px; max-width: 48em; }
img {
  display: block; max-width: 100%; height: auto; border-radius: 3px;
  outline: 1px solid var(--edge); outline-offset: -1px;
}
img.pixels { image-rendering: pixelated; }
.pairs { display: grid; grid-template-columns: repeat(4, 1fr); gap: 24px 28px; margin: 28px 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.pair img, .sheet img, .strip img { width: 100%; }
.pair p { grid-column: 1 / -1; margin: 4px 0 0; font-size: 12px; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 16px; align-items: flex-start; }
.row figcaption { margin-top: 6px; }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 48px; align-items: start; }

.sample {
  display: grid; grid-template-columns: 136px repeat(4, 1fr); gap: 0 22px; padding: 22px 0;
  border-top: 1px solid var(--rule); break-inside: avoid;
}
.sample.head { padding: 0 0 8px; border: 0; color: var(--soft); font-size: 13px; margin-top: 32px; }
.sample blockquote { margin: 0; font: italic 17px/1.45 var(--serif); }
.sample img { width: 100%; max-width: 184px; }
.verdict {
  list-style: none; margin: 10px 0 0; padding: 0; font-size: 12px; line-height: 1.65; color: var(--soft);
}
.verdict .tally { color: var(--ink); font-weight: 600; }
.fact { white-space: nowrap; margin-right: 4px; }
.fact b { font-weight: 600; color: var(--good); margin-right: 1px; }
.fact.wrong {
  color: var(--bad); background: var(--bad-panel); border-radius: 3px; padding: 1px 2px;
  margin-left: -2px; margin-right: 2px;
}
.fact.wrong b { color: var(--bad); }
.sheet { display: grid; grid-template-columns: repeat(12, 1fr); gap: 8px; }
.strip { display: grid; gap: 6px; align-items: end; margin-bottom: 14px; break-inside: avoid; }
.strip p { grid-column: 1 / -1; margin: 0; font: italic 16px/1.5 var(--serif); }
.times { display: grid; gap: 6px; text-align: center; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th, td {
  padding: 8px 0 8px 14px; text-align: right; font-weight: 400; border-bottom: 1px solid var(--rule);
  white-space: nowrap;
}
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-size: 13px; border-bottom-color: var(--ink); vertical-align: bottom; }
tr.marked th, tr.marked td { font-weight: 650; }
table.plain { width: auto; min-width: 60%; }
pre {
  background: var(--panel); border-radius: 6px; padding: 18px 22px; overflow-x: auto;
  font: 13px/1.7 var(--mono); margin: 12px 0 28px;
}
pre .remark { color: var(--soft); }
code { font: 0.9em var(--mono); }
footer { padding-top: 40px; padding-bottom: 72px; color: var(--soft); font-size: 13px; }
"""

_OTHER_MEDIA = """
@media (max-width: 820px) {
  main, header, footer { padding-left: 20px; padding-right: 20px; }
  header { padding-top: 48px; }
  h1 { font-size: 34px; }
  .headline, .pairs { grid-template-columns: repeat(2, 1fr); }
  .beside { grid-template-columns: minmax(0, 1fr); gap: 28px; }
  .sample { grid-template-columns: repeat(2, 1fr); gap: 14px 20px; }
  .sample.head { display: none; }
  .sample blockquote { grid-column: 1 / -1; }
  .sheet { grid-template-columns: repeat(6, 1fr); }
}
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #555; --rule: #ccc; --panel: #f5f5f5; }
  body { font-size: 10.5pt; }
  header { padding-top: 0; }
  section { padding: 20px 0 0; }
  section + section { margin-top: 20px; }
  h2, h3 { break-after: avoid; }
  figure, table, .headline { break-inside: avoid; }
  pre { white-space: pre-wrap; break-inside: avoid; }
  img, svg { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""

CSS = COLOURS + _PAGE + CHARTS + _OTHER_MEDIA
