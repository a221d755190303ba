"""A film of the first steps: whose is the largest feature on each class of tokens, moved by a slider; works offline.

What shows where no script runs is the last step.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from saelib.report.views import PALETTE, script_json

KINDS = {
    "parent": "the parent",
    "copy": "another copy of the narrow SAE",
    "fresh": "a fresh feature",
    "none": "no feature",
}
_COLOURS = dict(zip(KINDS, (PALETTE[1], PALETTE[0], PALETTE[2], "#c9cdd2"), strict=True))
_WIDTH, _HEIGHT, _LEFT = 520, 30, 90
_ids = itertools.count(1)

_SCRIPT = """(function () {
  var box = document.getElementById(ID), data = DATA, arm = data.arms[0].name, playing = null;
  var slider = box.querySelector("input"), label = box.querySelector("output");
  function draw() {
    var i = Math.min(+slider.value, data.steps.length - 1);
    label.textContent = "step " + data.steps[i];
    box.querySelectorAll("g[data-class]").forEach(function (group) {
      var x = LEFT, shares = data.shares[arm][group.dataset.class];
      group.querySelectorAll("rect").forEach(function (rect, k) {
        var share = shares[k][i], width = share * WIDTH;
        rect.setAttribute("x", x);
        rect.setAttribute("width", width);
        rect.firstChild.textContent = data.kinds[k] + ": " + Math.round(100 * share) + "%";
        x += width;
      });
    });
    box.querySelectorAll("button[data-arm]").forEach(function (button) {
      button.setAttribute("aria-pressed", button.dataset.arm === arm);
      button.style.fontWeight = button.dataset.arm === arm ? "bold" : "normal";
    });
  }
  function stop() { clearInterval(playing); playing = null; }
  box.querySelectorAll("button[data-arm]").forEach(function (button) {
    button.onclick = function () { arm = button.dataset.arm; draw(); };
  });
  box.querySelector("button[data-play]").onclick = function () {
    if (playing) { stop(); return; }
    slider.value = 0;
    playing = setInterval(function () {
      draw();
      if (+slider.value >= data.steps.length - 1) stop(); else slider.value = +slider.value + 1;
    }, 80);
  };
  slider.oninput = function () { stop(); draw(); };
  slider.value = 0;
  draw();
})();"""


class Film:
    """A film that shows itself in a notebook and on its page."""

    def __init__(self, curves: pd.DataFrame, arms: Mapping[str, str], classes: Sequence[str]) -> None:
        """`curves` has columns arm, step and `<kind>_<class>` for the kinds of `KINDS`; `arms` says each arm in words."""
        self.arms, self.classes = dict(arms), list(classes)
        self.steps = sorted(int(step) for step in curves["step"].unique())
        ordered = {arm: curves[curves["arm"] == arm].sort_values("step") for arm in self.arms}
        self.shares = {
            arm: {name: [part[f"{kind}_{name}"].round(3).tolist() for kind in KINDS] for name in self.classes}
            for arm, part in ordered.items()
        }

    def _data(self) -> dict[str, Any]:
        arms = [{"name": name, "text": text} for name, text in self.arms.items()]
        shares = {
            arm: {
                name: [[value if value == value else 0 for value in row] for row in rows] for name, rows in each.items()
            }
            for arm, each in self.shares.items()
        }
        return {"arms": arms, "steps": self.steps, "kinds": list(KINDS.values()), "shares": shares}

    def _repr_html_(self) -> str:
        identity, first, data = f"film-{next(_ids)}", next(iter(self.arms)), self._data()
        buttons = "".join(
            f'<button type="button" data-arm="{html.escape(name)}" title="{html.escape(text)}">{html.escape(name)}</button> '
            for name, text in self.arms.items()
        )
        rows = []
        for c, name in enumerate(self.classes):
            y, x = 8 + c * (_HEIGHT + 12), float(_LEFT)
            marks = [f'<text x="{_LEFT - 8}" y="{y + 20}" text-anchor="end" font-size="13">{html.escape(name)}</text>']
            for k, kind in enumerate(KINDS):
                width = data["shares"][first][name][k][-1] * _WIDTH
                marks.append(
                    f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_HEIGHT}" fill="{_COLOURS[kind]}">'
                    f"<title>{KINDS[kind]}</title></rect>"
                )
                x += width
            rows.append(f'<g data-class="{html.escape(name)}">{"".join(marks)}</g>')
        height = 8 + len(self.classes) * (_HEIGHT + 12)
        legend = "".join(
            f'<span style="margin-right:1em"><span style="display:inline-block;width:.8em;height:.8em;'
            f'background:{_COLOURS[kind]}"></span> {text}</span>'
            for kind, text in KINDS.items()
        )
        script = _SCRIPT.replace("ID", script_json(identity), 1).replace("DATA", script_json(data), 1)
        script = script.replace("LEFT", str(_LEFT)).replace("WIDTH", str(_WIDTH))
        return (
            f'<div id="{identity}" class="film"><p>{buttons}<button type="button" data-play="1">play</button></p>'
            f'<p><input type="range" min="0" max="{len(self.steps) - 1}" value="{len(self.steps) - 1}" '
            f'aria-label="step" style="width:{_LEFT + _WIDTH}px;max-width:100%"> <output>step {self.steps[-1]}</output></p>'
            f'<svg viewBox="0 0 {_LEFT + _WIDTH + 8} {height}" width="{_LEFT + _WIDTH + 8}" style="max-width:100%;height:auto" '
            f'font-family="sans-serif" role="img" aria-label="share of tokens by the kind of their largest feature">'
            f'{"".join(rows)}</svg><p class="note">{legend}</p></div><script>{script}</script>'
        )
