"""The page's style sheet, and its light colours for what is drawn as pixels."""

INK, PALE, RULE = (31, 35, 40), (95, 105, 115), (226, 228, 230)
PAPER, GROUND, STAGE = (255, 255, 255), (246, 246, 244), (236, 237, 237)
HINT = (240, 150, 0)
"""RGB of what points something out."""

STYLE = """
:root { --ink: #1f2328; --pale: #5f6973; --rule: #e2e4e6; --paper: #fff; --ground: #f6f6f4;
  --stage: #eceded; --hint: #8a5a00; --hint-ground: #fff4dc;
  --truth: rgb(0 150 80); --right: rgb(20 90 230); --wrong: rgb(215 35 35); --zoom: rgb(240 150 0);
  --line-1: #1d5fd1; --line-2: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --pale: #9aa5b0; --rule: #30363d;
  --paper: #1a1f25; --ground: #101418; --stage: #262c33; --hint: #ffcf70; --hint-ground: #3a2d10;
  --truth: rgb(40 190 110); --right: rgb(95 150 255); --wrong: rgb(255 110 105);
  --line-1: #6ba3ff; --line-2: #f0905a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1160px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.015em;
  font-weight: 650; margin: 0 0 12px; text-wrap: balance; }
h2 { font-size: 1.05rem; font-weight: 650; margin: 0 0 10px; }
section { margin-top: 36px; }
.lead { font-size: 1.1rem; color: var(--pale); max-width: 44em; margin: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 12px;
  margin: 28px 0 0; }
.facts div, .charts figure, .pictures figure, .tables > div { background: var(--paper);
  border: 1px solid var(--rule); border-radius: 10px; }
.facts div { padding: 14px 18px; }
.facts dt { font-size: .82rem; color: var(--pale); }
.facts dd { margin: 2px 0 0; font-size: 1.3rem; line-height: 1.25; font-weight: 620;
  letter-spacing: -.01em; overflow-wrap: anywhere; }
.facts div:first-child { grid-column: span 2; }
.facts div:first-child dd { font-size: 1.9rem; line-height: 1.1; color: var(--right); }
figure { margin: 0; }
.charts { display: grid; gap: 12px; margin-top: 12px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
.charts figure { padding: 14px; }
svg { display: block; width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: -4px 0 12px;
  font-size: .88rem; color: var(--pale); }
.legend span::before { content: ""; display: inline-block; width: 12px; height: 12px;
  margin-right: 7px; border: 3px solid var(--truth); border-radius: 2px; vertical-align: -1px; }
.legend .right::before { border-color: var(--right); border-radius: 50%; }
.legend .wrong::before { border-color: var(--wrong); border-radius: 50%; }
.pictures { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(var(--least), 1fr)); }
.pictures figure { overflow: hidden; }
.pictures img { display: block; width: 100%; aspect-ratio: var(--ratio); object-fit: contain;
  background: var(--stage); }
.pictures figcaption { padding: 9px 13px 11px; font-size: .88rem; line-height: 1.4;
  overflow-wrap: anywhere; border-top: 1px solid var(--rule); }
.pictures b { font-weight: 600; color: var(--right); margin-right: 4px; }
.pictures .miss b { color: var(--wrong); }
.tables { display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.tables > div { padding: 16px 18px 10px; min-width: 0; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: .86rem; }
th, td { padding: 5px 12px 5px 0; text-align: left; vertical-align: top; font-weight: 400; }
th[scope=row] { color: var(--pale); }
thead th { color: var(--pale); font-size: .82rem; }
tbody tr { border-top: 1px solid var(--rule); }
td { overflow-wrap: anywhere; min-width: 7em; }
td:last-child { padding-right: 0; }
.notes { color: var(--pale); font-size: .92rem; max-width: 52em; }
.notes ul { padding-left: 1.2em; margin: 0; }
@media (max-width: 520px) {
  main { padding: 28px 14px 48px; }
  .facts { grid-template-columns: 1fr 1fr; gap: 8px; }
  .facts div { padding: 10px 13px; }
  .facts dd { font-size: 1.15rem; }
  .facts div:first-child dd { font-size: 1.6rem; }
  .charts figure { padding: 8px 6px; }
  .pictures { grid-template-columns: 1fr 1fr; gap: 8px; }
}
@media print { body { background: #fff; } figure, .tables > div { break-inside: avoid; } }
"""
