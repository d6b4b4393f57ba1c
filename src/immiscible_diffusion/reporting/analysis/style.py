"""What the page of an analysis adds to the style sheet of the reports."""

CSS = """
th { white-space: normal; }
h4 { font-size: 0.92rem; margin: 1.2em 0 0.3em; color: var(--soft); }
.findings .main { border-left-color: #0072B2; }
.findings .main p { font-size: 1.06rem; }
.advice { background: var(--card); border: 1px solid var(--line); border-left: 5px solid
  var(--open); border-radius: 6px; padding: 10px 16px; margin: 14px 0; }
.advice.helps { border-left-color: var(--good); }
.advice ul, .warning ul { margin: 0.3em 0; padding-left: 1.2em; }
.warning { margin: 12px 0; } .warning p { max-width: 110ch; }
details { margin: 8px 0; }
table.seen th, table.seen td { text-align: center; padding: 5px; vertical-align: middle; }
table.seen th:first-child, table.seen td:first-child { text-align: left; min-width: 8em;
  max-width: 11em; }
table.seen img { display: block; width: clamp(56px, 7.4vw, 92px); height: auto; margin: 0 auto 4px;
  background: #ffffff; border: 1px solid var(--line); }
table.pixels img { image-rendering: pixelated; }
table.curves img { width: 132px; }
table.seen .of { display: block; color: var(--soft); font-size: 0.78rem; white-space: normal; }
.wide img { width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
"""
