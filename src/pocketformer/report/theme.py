"""How the page looks: a palette for text, tables and plots, light and dark, and the script that draws."""

import json

# Okabe-Ito hues, told apart by colour-blind readers; lightened where they would sink into the dark page.
LIGHT = {
    "bg": "#ffffff", "panel": "#f5f6f8", "fg": "#1b1f24", "muted": "#5b6470", "line": "#d5dae1",
    "blue": "#0072b2", "orange": "#d98a00", "green": "#009e73", "red": "#c84800", "purple": "#b0568d",
    "grey": "#8a929c",
}  # fmt: skip
DARK = {
    "bg": "#14171b", "panel": "#1e2328", "fg": "#e7eaee", "muted": "#a1aab5", "line": "#363d46",
    "blue": "#56b4e9", "orange": "#f0ad3a", "green": "#2fc79a", "red": "#ff7d45", "purple": "#d98fbd",
    "grey": "#7d8791",
}  # fmt: skip


def _variables(palette: dict[str, str]) -> str:
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())


CSS = f"""
:root{{color-scheme:light dark;{_variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}
@media print{{:root{{color-scheme:light;{_variables(LIGHT)}}}}}
"""
CSS += """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3em;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.2em 0 .5em;padding-top:.8em;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.6em 0 .3em}
p{margin:.5em 0;max-width:72ch}
.lead,.muted,figcaption{color:var(--muted)} figcaption,.muted{font-size:.88rem;max-width:80ch}
.verdict{border-left:4px solid var(--blue);background:var(--panel);padding:.7em 1em;max-width:none}
a{color:var(--blue)} code,pre{font:13px/1.45 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.2em 1.1em;font-size:.92rem;margin:1em 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:12px;margin:1.2em 0}
.card{background:var(--panel);border-radius:10px;padding:.8em 1em}
.card b{display:block;font-size:1.45rem;line-height:1.25;font-weight:650}
.card span{color:var(--muted);font-size:.88rem;display:block}
.budget{margin:.9em 0} .budget .what{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1em}
.bar{height:12px;border-radius:6px;background:var(--line);overflow:hidden;margin-top:.25em}
.bar i{display:block;height:100%;background:var(--green);border-radius:6px} .bar.over i{background:var(--red)}
.scroll{overflow-x:auto;margin:.8em 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.42em .65em;border-bottom:1px solid var(--line);
  text-align:right;vertical-align:top;white-space:nowrap}
thead th{color:var(--muted);font-weight:500;vertical-align:bottom;white-space:normal;min-width:5.5em}
th:first-child,td:first-child{text-align:left} tbody th{font-weight:600;white-space:normal}
.wide th:first-child{position:sticky;left:0;background:var(--bg);min-width:8.5em}
th small,td small{color:var(--muted);display:block;font-weight:400}
td.best{font-weight:700;background:var(--panel)}
table.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere}
table.facts th{vertical-align:top;font-weight:500;color:var(--muted);white-space:normal;min-width:9em}
figure{margin:1.2em 0} .plot{width:100%;height:400px} .plot.tall{height:440px}
details{background:var(--panel);border-radius:8px;padding:.6em 1em;margin:1em 0} summary{cursor:pointer}
pre{overflow-x:auto;white-space:pre-wrap} ul{padding-left:1.2em;margin:.4em 0}
@media (max-width:600px){main{padding:16px 12px 48px} .plot{height:360px} .plot.tall{height:420px}}
"""

# Figures name colours as "@blue"; the script puts in those of the scheme, and draws again when it changes.
SCRIPT = """
(function () {
  var palettes = PALETTES, media = window.matchMedia("(prefers-color-scheme: dark)");
  function themed(text) {
    var colours = palettes[media.matches ? "dark" : "light"];
    return JSON.parse(text.replace(/"@([a-z]+)"/g, function (all, name) {
      return colours[name] ? '"' + colours[name] + '"' : all;
    }));
  }
  function draw() {
    document.querySelectorAll(".plot").forEach(function (place) {
      var figure = themed(document.getElementById(place.id + "-data").textContent);
      // Dragging over a plot scrolls the page where a finger does it.
      if (window.matchMedia("(pointer: coarse)").matches) figure.layout.dragmode = false;
      if (place.clientWidth < 560) figure.layout.margin = {l: 52, r: 10, t: 32, b: 48};
      Plotly.react(place, figure.data, figure.layout, {
        // Newer plotly offers to upload the plot; a page about somebody's own data must not.
        showSendToCloud: false, plotlyServerURL: "",
        responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
        toImageButtonOptions: {format: "svg", filename: place.dataset.name}
      });
    });
  }
  draw();
  media.addEventListener("change", draw);
})();
""".replace("PALETTES", json.dumps({"light": LIGHT, "dark": DARK}))


def resolved(value, palette: dict[str, str] = LIGHT):
    """A figure with its colour names replaced, for drawing outside the page."""
    if isinstance(value, dict):
        return {name: resolved(entry, palette) for name, entry in value.items()}
    if isinstance(value, list):
        return [resolved(entry, palette) for entry in value]
    if isinstance(value, str) and value.startswith("@"):
        return palette.get(value[1:], value)
    return value
