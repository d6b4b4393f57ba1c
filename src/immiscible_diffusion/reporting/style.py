"""The style sheet of the page: phone and desk, light and dark, screen and paper."""

CSS = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --page: #f6f7f9;
  --card: #ffffff; --line: #d9dee4; --good: #0a6b3d; --bad: #a8321a; --open: #6a5400; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --soft: #a3adb8; --page: #14171b;
  --card: #1d2126; --line: #363d45; --good: #5fd39a; --bad: #ff9c85; --open: #e6c65c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
main { max-width: 1160px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.3em 0; }
h2 { font-size: 1.25rem; margin: 2.2em 0 0.5em; }
h3 { font-size: 1rem; margin: 1.6em 0 0.4em; }
p { max-width: 78ch; margin: 0.5em 0; }
.soft, figcaption, .note { color: var(--soft); font-size: 0.88rem; }
.note { max-width: 110ch; }
.lead { font-size: 1.1rem; }
.facts { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 10px 0;
  list-style: none; }
.facts b { font-variant-numeric: tabular-nums; }
.findings { list-style: none; padding: 0; display: grid; gap: 10px; }
.findings li { background: var(--card); border: 1px solid var(--line); padding: 12px 16px;
  min-width: 0; overflow-wrap: anywhere;
  border-left: 5px solid var(--soft); border-radius: 6px; }
.findings p { max-width: 110ch; margin: 0.2em 0; }
.findings .helps { border-left-color: var(--good); }
.findings .hurts { border-left-color: var(--bad); }
.badge { font-weight: 600; } td.badge { border: 0; border-bottom: 1px solid var(--line); }
.badge.helps, .badge.ends-better { color: var(--good); }
.badge.hurts, .badge.ends-worse { color: var(--bad); }
.badge.unresolved, .badge.one-seed, .badge.missing { color: var(--open); }
.warning { background: var(--card); border: 1px solid var(--open); border-radius: 6px;
  padding: 8px 16px; }
figure { margin: 12px 0; } figcaption { margin-top: 8px; }
.panels { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); }
.panels.two { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.panels > * { min-width: 0; }
.panel { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
.panel.headline { outline: 2px solid #0072B2; }
.panel svg { display: block; width: 100%; height: auto; max-width: 620px; margin: 0 auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 8px 12px; margin: 0 0 10px;
  background: #ffffff; color: #222222; border: 1px solid var(--line); border-radius: 6px;
  font-size: 0.88rem; list-style: none; }
.legend li { min-width: 0; overflow-wrap: anywhere; }
.legend svg { width: 40px; height: 14px; vertical-align: middle; margin-right: 6px; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.84rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tr:last-child td { border-bottom: 0 !important; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; z-index: 1;
  background: var(--card); white-space: normal; min-width: 9em; }
@media (max-width: 640px) { th:first-child, td:first-child { max-width: 42vw;
  overflow-wrap: anywhere; } }
tr.control td:first-child { padding-left: 24px; color: var(--soft); }
.grids td, .grids th { text-align: center; padding: 6px; }
.grids img { display: block; width: clamp(130px, 21vw, 230px); height: auto; margin: 0 auto;
  image-rendering: pixelated; background: #ffffff; }
.film img { max-width: 100%; height: auto; }
.strips img { width: clamp(240px, 40vw, 400px); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 10px 14px; white-space: pre-wrap; overflow-wrap: anywhere; }
details summary { cursor: pointer; font-weight: 600; margin: 1em 0 0.4em; }
dl { display: grid; grid-template-columns: minmax(7em, max-content) 1fr; gap: 4px 18px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --text: #000; --soft: #444; --page: #fff; --card: #fff;
    --line: #bbb; --good: #0a6b3d; --bad: #a8321a; --open: #6a5400; }
  main { max-width: none; padding: 0; } body { font-size: 10pt; }
  .scroll { overflow: visible; } th, td { white-space: normal; padding: 3px 5px; }
  th:first-child, td:first-child { position: static; min-width: 0; }
  .panels, .panels.two { grid-template-columns: 1fr 1fr; }
  figure, tr, .findings li, .panels > * { min-width: 0; }
.panel { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .grids img { width: 100%; max-width: 150px; } .strips img { max-width: 420px; } }
"""
