"""Tables beside a page, the film of the first steps, and the index's section on what the post left open."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from saelib.bench.table import as_table, write_table
from saelib.report.film import KINDS, Film
from saelib.report.index_page import build_index
from saelib.report.left_open import NOT_RUN, OUTDATED, left_open, left_open_html, renew_left_open
from saelib.report.page import outside_references
from saelib.report.side_work import LEFT_OPEN, side_work
from saelib.report.tables import TABLE_MIME, keep_table, write_tables
from saelib.study.replacing_tables import summary_table


def test_a_kept_table_reads_as_from_its_file() -> None:
    found = keep_table(pd.DataFrame({"a": [1 / 3, np.nan], "b": ["x", "y"]}))
    assert found["a"].iloc[0] == 0.333333 and found["b"].tolist() == ["x", "y"]


def test_tables_are_written_beside_their_page(tmp_path: Path) -> None:
    def output(name: str, text: str) -> object:
        return new_output("display_data", data={TABLE_MIME: {"name": name, "csv": text}, "text/plain": ""})

    cells = [new_code_cell("a", outputs=[output("", "x\n1\n"), output("runs", "y\n2\n")])]
    cells += [new_code_cell("b", outputs=[output("", "x\n3\n")])]
    paths = write_tables(new_notebook(cells=cells), tmp_path, "14_replacing")
    assert [path.name for path in paths] == ["14_replacing.csv", "14_replacing-runs.csv"]
    assert paths[0].read_text() == "x\n3\n" and paths[1].read_text() == "y\n2\n"


# --- the film ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def film() -> Film:
    rows = [
        {
            "arm": arm,
            "step": step,
            "parent_count": share,
            "copy_count": 0.0,
            "fresh_count": 1 - share,
            "none_count": 0.0,
        }
        for arm, last in (("warm", 0.25), ("zeroed", 0.0))
        for step, share in ((0, 1.0), (1, last))
    ]
    return Film(pd.DataFrame(rows), {"warm": "as it is", "zeroed": "parent <zeroed>"}, ["count"])


def test_without_a_script_the_film_shows_the_last_step_of_the_first_arm(film: Film) -> None:
    html = film._repr_html_()
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', html)]
    assert widths == [130, 0, 390, 0] and "step 1</output>" in html
    assert "parent &lt;zeroed&gt;" in html and all(words in html for words in KINDS.values())
    assert not outside_references(html)


def test_two_films_on_a_page_do_not_share_a_name(film: Film) -> None:
    names = [re.search(r'id="(film-\d+)"', film._repr_html_()) for _ in range(2)]
    assert names[0] and names[1] and names[0].group(1) != names[1].group(1)


STAND_IN = """
var made = {}, box = null;
function element(data) {
  return {dataset: data || {}, style: {}, attributes: {}, children: [], firstChild: {},
    setAttribute: function (k, v) { this.attributes[k] = v; },
    querySelectorAll: function () { return this.children; }};
}
var slider = element(); slider.value = 0;
var label = element(), play = element(), group = element({class: "count"});
var buttons = [element({arm: "warm"}), element({arm: "zeroed"})];
group.children = [0, 1, 2, 3].map(function () { return element(); });
box = element();
box.querySelector = function (q) { return q === "input" ? slider : q === "output" ? label : play; };
box.querySelectorAll = function (q) { return q.indexOf("g[") === 0 ? [group] : buttons; };
document = {getElementById: function () { return box; }};
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the script with")
def test_the_slider_moves_the_bars(film: Film) -> None:
    script = re.search(r"<script>(.*)</script>", film._repr_html_(), re.DOTALL)
    assert script is not None
    end = """
    function widths() { return group.children.map(function (r) { return r.attributes.width; }); }
    var seen = [widths()];
    slider.value = 1; slider.oninput(); seen.push(widths());
    buttons[1].onclick(); seen.push(widths());
    console.log(JSON.stringify({seen: seen, label: label.textContent, title: group.children[2].firstChild.textContent}));
    """
    done = subprocess.run(["node", "-e", STAND_IN + script.group(1) + end], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["seen"] == [[520, 0, 0, 0], [130, 0, 390, 0], [0, 0, 520, 0]]
    assert found["label"] == "step 1" and found["title"] == "a fresh feature: 100%"


# --- the index's section ------------------------------------------------------------------------------------------------------


def write_replacing(folder: Path) -> None:
    runs = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "first": "count", "S_2": 0.5, "fvu_on": 0.1, "fvu_off": 0.1}
            | {f"steps_{c}": steps for c in ("count", "number", "compound")}
            | {f"by_{c}": "fresh" for c in ("count", "number", "compound")}
            | {f"cosine_{c}": 0.1 for c in ("count", "number", "compound")}
            for arm, steps in (("warm", 7.0), ("decoder", 3.0))
            for seed in (0, 1)
        ]
    )
    summary_table(runs, 10).to_csv(folder / "14_replacing.csv", index=False)


def test_answers_are_read_back_from_the_tables(tmp_path: Path) -> None:
    folder = tmp_path / "mini"
    folder.mkdir()
    assert left_open_html(folder) == ""
    write_replacing(folder)
    (folder / "14_replacing.html").write_text("page")
    (tmp_path / "splitbench").mkdir()
    facts = [("a1", "test"), ("a2", "test"), ("b1", "test"), ("d1", "dev")]
    S_2 = {"children-64": (0.2, 0.4, 0.9, 0.5), "rest": (0.1, 0.1, 0.1, 0.1), "all-data": (0.1, 0.2, math.nan, 0.4)}
    S_2["token-filter"] = (0.7, 0.6, math.nan, 0.9)
    rows = [
        {
            "parent": parent,
            "origin": parent[0],
            "method": method,
            "kind": "wide" if method in ("all-data", "token-filter") else "local",
        }
        | {"side": side, "stratum": "separable", "seed": seed, "S_2": value}
        for method, values in S_2.items()
        for (parent, side), value in zip(facts, values, strict=True)
        for seed in (0, 1)
    ]
    rows.append(rows[0] | {"parent": "a3", "stratum": "none", "S_2": math.nan})
    write_table(as_table(rows), tmp_path / "splitbench" / "splitbench.csv")
    other, data, replacing, circuits = left_open(folder)
    assert data.answer == circuits.answer == NOT_RUN and data.page == ""
    assert "after 7 steps" in replacing.answer and replacing.page == "14_replacing.html"
    assert other.answer.startswith(
        "On 3 parents on which nothing was tuned mean S_2 is 0.50 (95% 0.25 to 0.90) with children, 0.10 without; "
        "over the best wide SAE that serves all parents they gain 0.15 (95% 0.10 to 0.20) on the 2 that both have; "
        "a whole wide SAE for each parent (token-filter) stands 0.35 (95% 0.20 to 0.50) above them on 2."
    )
    html = left_open_html(folder)
    assert "What the post left open" in html and '<a href="14_replacing.html">' in html and html.count("<dt>") == 4


def test_a_table_of_an_older_version_is_no_reason_to_stop(tmp_path: Path) -> None:
    pd.DataFrame({"arm": ["warm, all"], "level": ["half"]}).to_csv(tmp_path / "13_data_needed.csv", index=False)
    pd.DataFrame({"question": ["source"]}).to_csv(tmp_path / "15_circuits.csv", index=False)
    (tmp_path / "14_replacing.csv").write_text("")
    assert [one.answer for one in left_open(tmp_path)] == [NOT_RUN, OUTDATED, OUTDATED, OUTDATED]


def test_the_index_has_the_section_once_something_of_it_was_run(tmp_path: Path) -> None:
    assert "left open" not in build_index(tmp_path, "mini", {}, []).read_text()
    write_replacing(tmp_path)
    page = build_index(tmp_path, "mini", {}, []).read_text()
    assert page.count("What the post left open") == 1 and "after 7 steps" in page


def test_a_notebook_that_is_run_later_has_its_line_on_the_index(tmp_path: Path) -> None:
    renew_left_open(tmp_path)
    assert not (tmp_path / "index.html").exists()  # no index, nothing to renew
    (tmp_path / "01_narrow_sae.html").write_text("page")
    listed = [{"title": "The narrow SAE", "href": "01_narrow_sae.html"}]
    without = build_index(tmp_path, "mini", {}, listed).read_text()
    write_replacing(tmp_path)
    renew_left_open(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.split() == build_index(tmp_path, "mini", {}, listed).read_text().split() and page != without
    table = pd.read_csv(tmp_path / "14_replacing.csv")
    table.replace({7.0: 8.0}).to_csv(tmp_path / "14_replacing.csv", index=False)
    renew_left_open(tmp_path)
    renewed = (tmp_path / "index.html").read_text()
    assert (
        "after 8 steps" in renewed and "after 7 steps" not in renewed and renewed.count("What the post left open") == 1
    )


def test_each_notebook_has_its_work_in_as_many_parts_as_run_side_by_side(root: Path) -> None:
    assert all((root / "notebooks" / f"{name}.py").is_file() for name in LEFT_OPEN)
    for name in LEFT_OPEN:
        jobs = side_work(name, "smoke", 2, 1)
        assert [job.arguments for job in jobs] == [{"profile": "smoke", "part": part, "parts": 2} for part in (0, 1)]
    assert side_work("01_narrow_sae", "smoke", 2, 1) == []
