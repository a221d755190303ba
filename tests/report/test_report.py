"""Pages open offline, show everything that was found and nothing that was not, and say where their numbers came from."""

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from saelib.base.errors import UserError
from saelib.base.provenance import commit
from saelib.base.table import meanings
from saelib.report.index_page import TABLES, answer_sentences, build_index, table_rows, write_tables
from saelib.report.notebook_body import HEADLINE_MIME, WATERMARK_MIME, align_tables, last_states
from saelib.report.page import (
    Page,
    file_references,
    outside_references,
    script_safe,
    show,
    show_bytes,
    show_count,
    show_seconds,
)
from saelib.report.report import collect_headline, headline, render_page, watermark
from saelib.report.views import VIEW_MIME, top_contexts
from saelib.study.results import RunResult
from saelib.study.runs import RUNS

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = ["</script>", "<b>", '"quoted"', "&amp;", '<img src="https://example.org/x.png">', "<!--"]

NUMBERS = {"verdict": "<yes>", "l0": 31.2, "fvu": None, "arms": {"warm": 8.25}}


def record(mime, values, text=""):
    return new_output("display_data", {mime: values, "text/plain": text}, metadata={mime: {"order": list(values)}})


@pytest.fixture
def executed(tmp_path):
    """A notebook with every kind of output, as papermill leaves it."""
    frame = pd.DataFrame({"token": HOSTILE, "activation": np.arange(len(HOSTILE)) / 10})
    view = top_contexts([HOSTILE], [np.ones(len(HOSTILE))])
    marks = {"commit": "c0ffee", "dirty": True, "seeds": {"init": 10}, "device": "a machine", "threads": 1}
    cells = [
        new_markdown_cell("# Does run 4 **split** `p`?\n\nSee [the study](https://example.org/post) and $3."),
        new_code_cell("first = 1\nsecret_sauce = 1  # <b>",
                      outputs=[new_output("stream", text="step 1\rstep 2\ndone\n", name="stdout")]),
        new_code_cell("warn()", outputs=[new_output("stream", text="UserWarning: odd\n", name="stderr")]),
        new_code_cell("frame", outputs=[new_output("execute_result", {"text/html": frame._repr_html_()})]),
        new_code_cell("plot()", outputs=[new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})]),
        new_code_cell("view", outputs=[new_output("display_data", {VIEW_MIME: view.data(), "text/html": "<p>lab only</p>"})]),
        new_code_cell("tokens", outputs=[new_output("execute_result", {"text/plain": str(HOSTILE)})]),
        new_code_cell("headline()", outputs=[record(HEADLINE_MIME, NUMBERS)]),
        new_code_cell("watermark()", outputs=[record(WATERMARK_MIME, marks, "noise")]),
    ]  # fmt: skip
    notebook = new_notebook(
        cells=cells, metadata={"papermill": {"parameters": {"run": 4, "seed": 10}, "duration": 94.2}}
    )
    nbformat.write(notebook, tmp_path / "executed.ipynb")
    return tmp_path / "executed.ipynb"


@pytest.fixture
def page(executed, tmp_path):
    pages = [Page("run-03", "Run 3", 3), Page("run-04", "Run 4", 4), {"title": "Run 5", "href": "run-05.html"}]
    out = tmp_path / "mini" / "run-04.html"
    return out, render_page(executed, out, title="Run 4", pages=pages)


class Structure(HTMLParser):
    """Visible text with the elements it is inside of, and how often each tag occurs."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.stack, self.texts, self.tags = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack, f"</{tag}> closes nothing"
            assert self.stack[-1][0] == tag, f"</{tag}> closes <{self.stack[-1][0]}>"
            self.stack.pop()

    def handle_data(self, data):
        if not self.stack or self.stack[-1][0] not in ("script", "style"):
            self.texts.append((data, [tag for tag, _ in self.stack], [attrs for _, attrs in self.stack]))

    @property
    def text(self):
        return "".join(data for data, _, _ in self.texts)

    def inside(self, needle):
        """The elements around the first text that has `needle`."""
        return next(((tags, attrs) for data, tags, attrs in self.texts if needle in data), None)


# -- nothing is fetched -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/x.js"></script>', '<link href="//cdn.example.org/x.css">',
        "<img src=http://example.org/x.png>", '<a href="HTTPS://example.org">', "<img srcset='https://example.org/a.png 2x'>",
        "<style>body { background: url(https://example.org/x.png) }</style>", "<style>@import '//cdn.example.org/x.css'</style>",
        '<p style="background: url(//example.org/x)">', '<script>import("https://example.org/x.js")</script>',
        "<script type=module>import x from '//cdn.example.org/x.js'</script>", "<script>fetch('https://example.org')</script>",
        '<meta http-equiv="refresh" content="0; url=https://example.org">', "<script>s.src = 'https://example.org/x.js'</script>",
    ],
)  # fmt: skip
def test_an_outside_reference_is_found(html):
    assert len(outside_references(html)) == 1


def test_text_is_no_reference():
    assert (
        outside_references("<p>https://example.org src=https://example.org url(//x)</p><script>x='http://a'</script>")
        == []
    )


def test_a_page_refers_to_no_outside_host(page):
    html = page[0].read_text()
    assert outside_references(html) == []
    assert sorted(set(file_references(html))) == [
        "assets/circuitsvis.js", "assets/report.css", "assets/report.js", "index.html", "run-03.html", "run-05.html",
    ]  # fmt: skip
    for asset in (page[0].parent / "assets").iterdir():
        assert not re.search(r"(src|href)=[\"']?(https?:)?//|@import|url\(|//cdn|importScripts", asset.read_text()), (
            asset
        )
    assert "Content-Security-Policy" in html
    assert "default-src 'none'" in html  # the browser holds the page to it too


def test_an_output_that_would_fetch_is_refused(executed, tmp_path):
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells[3].outputs = [new_output("display_data", {"text/html": '<img src="https://example.org/x.png">'})]
    nbformat.write(notebook, executed)
    with pytest.raises(UserError, match=r"another host; got https://example\.org/x\.png: embed it"):
        render_page(executed, tmp_path / "out.html", title="x")
    assert not (tmp_path / "out.html").exists()


def test_a_standalone_page_needs_no_other_file(executed, tmp_path):
    render_page(
        executed, tmp_path / "alone" / "page.html", title="Run 4", pages=[Page("page", "Run 4")], standalone=True
    )
    html = (tmp_path / "alone" / "page.html").read_text()
    assert file_references(html) == []
    assert sorted(path.name for path in (tmp_path / "alone").iterdir()) == ["page.html", "page.json"]
    assert "var CircuitsVis=" in html
    assert Structure(html).inside("Does run 4")[0][-1] == "h1"


def test_script_safe_keeps_the_script_open():
    assert "</script" not in script_safe('x="<SCRIPT></Script>"; y="<!--"').lower()
    assert "<!--" not in script_safe("<!--")


# -- what a page shows ------------------------------------------------------------------------------------------------


def test_elements_nest_and_text_stays_text(page):
    structure = Structure(page[0].read_text())  # asserts that every end tag closes the innermost open element
    assert structure.stack == []
    for token in HOSTILE:
        assert token in structure.text
    assert "<yes>" in structure.text
    assert not [tag for tag, _ in structure.tags if tag in ("b", "yes")]
    assert all(attrs["src"].startswith("data:") for tag, attrs in structure.tags if tag == "img")


def test_code_is_collapsed_not_removed(page):
    tags, attrs = Structure(page[0].read_text()).inside("secret_sauce")
    assert "details" in tags
    assert "open" not in attrs[tags.index("details")]


def test_stderr_is_collapsed_and_progress_keeps_its_last_state(page):
    structure = Structure(page[0].read_text())
    assert "details" in structure.inside("UserWarning: odd")[0]
    assert structure.inside("step 2")[0][-1] == "pre"
    assert "step 1" not in structure.text
    assert last_states("a\rbb\r\nc\r") == "bb\nc"


def test_heading_headline_and_navigation(page):
    structure = Structure(page[0].read_text())
    assert structure.inside("Does run 4 split p?")[0][-1] == "h1"
    assert len([tag for tag, _ in structure.tags if tag == "h1"]) == 1
    assert structure.inside("31.2")[0][-1] == "dd"
    assert "fvu" not in structure.text  # nothing measured, nothing shown
    assert "8.25" not in structure.text  # a table's place is in the text
    assert "← Run 3" in structure.text
    assert "Run 5 →" in structure.text
    assert "the study (example.org/post)" in structure.text
    assert "noise" not in structure.text
    assert "lab only" not in structure.text


def test_views_are_mounted_from_the_shared_bundle(page):
    html = page[0].read_text()
    assert len(html) < 40_000
    assert html.count("CircuitsVis.render(") == 1
    assert html.index('src="assets/circuitsvis.js"') < html.index("CircuitsVis.render(")
    assert len((page[0].parent / "assets" / "circuitsvis.js").read_text()) > 1_000_000


def test_the_bundle_is_left_out_where_no_view_is(tmp_path):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Plain")]), tmp_path / "n.ipynb")
    render_page(tmp_path / "n.ipynb", tmp_path / "n.html", title="n")
    assert "circuitsvis" not in (tmp_path / "n.html").read_text().split("<footer>")[0]


def test_tables_are_aligned_and_scroll():
    frame = pd.DataFrame({"name": ["a", "b"], "n": [1, 2], "x": [0.5, float("nan")]})
    structure = Structure(align_tables(frame._repr_html_()))
    assert structure.inside("0.5")[1][-1].get("class") == "num"
    assert structure.inside("b")[1][-1].get("class") is None
    assert "scroll" in [attrs.get("class") for attrs in structure.inside("0.5")[1]]
    assert not [tag for tag, _ in structure.tags if tag == "style"]


def test_this_machines_folders_are_not_shown(executed, tmp_path, monkeypatch):
    monkeypatch.setenv("SAELIB_CACHE", "/somewhere/private")
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells[2].outputs[0]["text"] = f"/somewhere/private/x.npy: odd\n{Path.home()}/secret/y\n"
    nbformat.write(notebook, executed)
    render_page(executed, tmp_path / "out.html", title="x")
    assert "/somewhere/private" not in (tmp_path / "out.html").read_text()
    assert "$SAELIB_CACHE/x.npy: odd" in (tmp_path / "out.html").read_text()


def test_a_failed_cell_is_shown(tmp_path):
    error = new_output("error", ename="ValueError", evalue="no", traceback=["\x1b[31mValueError\x1b[0m: no <b>"])
    nbformat.write(new_notebook(cells=[new_code_cell("f()", outputs=[error])]), tmp_path / "n.ipynb")
    render_page(tmp_path / "n.ipynb", tmp_path / "n.html", title="n")
    structure = Structure((tmp_path / "n.html").read_text())
    assert "ValueError: no <b>" in structure.text.replace("\n", "")
    assert "details" not in structure.inside("no <b>")[0]


def test_not_a_notebook_is_named(tmp_path):
    (tmp_path / "x.ipynb").write_text("not json")
    with pytest.raises(UserError, match=r"executed notebook; got .*x\.ipynb: run the notebook first"):
        render_page(tmp_path / "x.ipynb", tmp_path / "x.html", title="x")


# -- where numbers came from ------------------------------------------------------------------------------------------


def test_json_sibling(page):
    sibling = json.loads(page[0].with_suffix(".json").read_text())
    assert sibling == page[1]
    assert sibling["parameters"] == {"run": 4, "seed": 10}
    assert sibling["headline"] == NUMBERS
    assert list(sibling["headline"]) == ["verdict", "l0", "fvu", "arms"]  # the order they were given in, not the file's
    assert (sibling["commit"], sibling["dirty"]) == ("c0ffee", True)
    assert (sibling["seeds"], sibling["device"], sibling["threads"]) == ({"init": 10}, "a machine", 1)
    assert sibling["wall_seconds"] == 94.2
    assert {"python", "saelib", "torch", "numpy", "circuitsvis"} <= set(sibling["versions"])
    assert "text_manifest" in sibling


def test_the_runner_knows_better_than_the_file_and_the_kernel_better_than_the_runner(executed, tmp_path):
    result = {
        "seconds": 7.0,
        "headline": {"l0": 1.0},
        "parameters": {"run": 5},
        "device": "elsewhere",
        "text_manifest": {"n": 1},
    }
    made = render_page(executed, tmp_path / "x.html", title="x", result=result)
    assert (made["wall_seconds"], made["headline"]["l0"], made["parameters"]) == (7.0, 1.0, {"run": 5})
    assert made["device"] == "a machine"
    assert made["text_manifest"] == {"n": 1}


def test_headline_is_plain_json():
    given = headline(a=np.float32(31.2), b=torch.tensor(3), c=np.nan, d=True, e=[np.int64(1)], f=float("inf"), g="text")
    assert given == {"a": 31.2, "b": 3, "c": None, "d": True, "e": [1], "f": None, "g": "text"}
    assert json.loads(json.dumps(given, allow_nan=False)) == given


def test_headline_in_a_kernel_is_collected_and_quiet():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    try:
        with capture_output() as captured:
            shell.run_cell("from saelib.report.report import headline\nheadline(zeta=1.5, alpha='yes')")
    finally:
        InteractiveShell.clear_instance()
    (shown,) = captured.outputs
    assert "zeta" not in captured.stdout  # shown once, though it is the cell's last value too
    assert shown.data["text/plain"] == "zeta 1.5 · alpha yes"
    output = new_output("display_data", dict(shown.data), metadata=dict(shown.metadata))
    notebook = nbformat.reads(nbformat.writes(new_notebook(cells=[new_code_cell("", outputs=[output])])), as_version=4)
    assert list(collect_headline(notebook).items()) == [("zeta", 1.5), ("alpha", "yes")]


def test_watermark_names_what_a_result_depends_on():
    mark = watermark(seeds={"init": 1}, text_manifest={"tokens": 5}, harvest="abc")
    assert mark["seeds"] == {"init": 1}
    assert mark["harvest"] == "abc"
    assert {"versions", "commit", "dirty", "device", "threads", "platform", "text_manifest"} <= set(mark)


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_commit_and_dirty_flag(tmp_path):
    source = tmp_path / "pkg" / "module.py"
    source.parent.mkdir()
    source.write_text("x = 1\n")
    assert commit(source) == (None, None)  # no repository
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    assert commit(source) == (None, None)  # inside one, but not its file
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "second")
    described, dirty = commit(source)
    assert re.fullmatch("[0-9a-f]{12}", described)
    assert dirty is False
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "index.html").write_text("made")
    assert commit(source)[1] is False  # a report does not make the code that made it dirty
    source.write_text("x = 2\n")
    assert commit(source) == (described, True)


# -- the index --------------------------------------------------------------------------------------------------------


@pytest.fixture
def results():
    """The row of every run but 9; run 3 without a loss recovered."""
    rows = []
    for spec in RUNS:
        if spec.run == 9:
            continue
        split = spec.filtered and spec.run != 12
        S_2 = 0.6 if split else 0.5 if spec.published_classes is None else 0.4
        rows.append(
            {"run": spec.run, "size": spec.size, "seed": spec.seed, "filtered": spec.filtered, "loss": "standard",
             "published_classes": spec.published_classes, "S_2": S_2, "S_2_low": S_2 - 0.06, "S_2_high": S_2 + 0.06,
             "mcc_2_number": 0.7, "ceiling_number": 0.9, "mcc_2_count": 0.5, "ceiling_count": None,
             "verdict": "split" if split else "partial", "passed": 1 + split, "required": 2, "failed": "count: added",
             "prompts": 3 if split else 0, "tokens": 26_214_400, "l0": 20.0 + spec.run, "fvu": 0.12,
             "loss_recovered": None if spec.run == 3 else 0.95, "d_sae": 2048}
        )  # fmt: skip
    return rows


def claim(name, kind, effect, verdict):
    row = dict.fromkeys(meanings(TABLES["claims"][1]))
    return row | {"claim": name, "kind": kind, "published": "runs 4-6" if kind == "published" else "", "arms": "a - b",
                  "blocks": 12, "seeds": 2, "first_S_2": 0.61, "second_S_2": 0.61 - effect, "effect": effect,
                  "low": effect - 0.05, "high": effect + 0.05, "test": "t over 12 block means", "p": 0.01, "p_holm": 0.02,
                  "smallest_effect": 0.07, "verdict": verdict}  # fmt: skip


CLAIMS = [claim("A control", "control", 0.0, "undecided"), claim("Ours", "ours", 0.03, "not supported"),
          claim("Filtering <helps>", "published", 0.2, "supported")]  # fmt: skip
CHILDREN = [
    {"dictionary": "children", "seed": 0, "S_2": 0.71}, {"dictionary": "children", "seed": 1, "S_2": 0.73},
    {"dictionary": "random decoder", "seed": 0, "S_2": 0.2},
]  # fmt: skip
MADE_OF = [
    {"feature": 40 + i, "name": f"“-” after <{i}>", "share": 0.3 / (1 + i), "mcc": 0.5, "added": 0.4, "added_low": 0.3,
     "added_high": 0.5, "leak": 0.01, "copy_of": -1}
    for i in range(14)
]  # fmt: skip
PAGES = [
    Page("01_narrow_sae", "The narrow SAE"),
    *(Page(f"run-{spec.run:02d}", f"Run {spec.run}", spec.run) for spec in RUNS),
    Page("09_split_page", "The split"),
]


def test_index_shows_every_run_and_links_it(results, tmp_path):
    html = build_index(tmp_path, "mini", {"runs": results}, PAGES).read_text()
    structure = Structure(html)
    assert structure.stack == []
    rows = re.findall(
        r"<tr[^>]*>\s*<td.*?</tr>", html.split('<table class="runs">')[1].split("</table>")[0], flags=re.DOTALL
    )
    assert len(rows) == len(RUNS)
    for row, spec in zip(rows, RUNS, strict=True):
        assert f'href="run-{spec.run:02d}.html"' in row
        assert ("not run here" in row) == (spec.run == 9)
        assert Structure(f"<table>{row}</table>").text.split()[2] == str(spec.seed)
    controls = html.split('<tbody class="controls">')[1].split("</tbody>")[0]
    assert [f"run-{run}.html" in controls for run in (12, 13, 14, 15)] == [False, True, True, True]
    assert "The narrow SAE" in structure.text and "The claims" not in structure.text
    assert outside_references(html) == []
    for meaning in meanings(RunResult).values():
        assert meaning in structure.text
    assert json.loads((tmp_path / "index.json").read_text())["runs"][0]["verdict"] == "partial"


def test_the_index_has_numbers_beside_the_published_verdict(results, tmp_path):
    html = build_index(tmp_path, "mini", {"runs": results}, PAGES).read_text()
    row = next(row for row in html.split("<tr>") if 'href="run-03.html"' in row)
    cells = [Structure(f"<p>{cell}</p>").text for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL)]
    assert cells[7:13] == ["0 of 3", "0 of 3", "0.40 (0.34 to 0.46)", "0.70 of 0.90", "0.50", "partial 1 of 2"]
    assert 'title="count: added"' in row
    assert cells[-3:] == ["23.0", "0.120", ""], "what was not measured is an empty cell"
    head = html.split('<table class="runs">')[1].split("</thead>")[0]
    spans = [int(n) for n in re.findall(r'<th[^>]*colspan="(\d+)"', head)]
    assert sum(spans) + 1 == len(re.findall(r"<th[ >]", head.split("</tr>")[1])) == len(cells)
    eleven = next(row for row in html.split("<tr>") if 'href="run-11.html"' in row)
    assert "2 of 3" in eleven and "none for" in eleven


def test_the_index_leads_with_what_the_hyphen_is_made_of(results, tmp_path):
    tables = {"runs": results, "made_of": MADE_OF, "claims": CLAIMS, "children": CHILDREN}
    answers = {"09_split_page": "It splits <well>.", "01_narrow_sae": "L0 is 12."}
    write_tables(tables, tmp_path)
    html = build_index(tmp_path, "mini", tables, PAGES, {"answers": answers}).read_text()
    structure = Structure(html)
    assert structure.stack == [] and outside_references(html) == []
    places = [html.index(words) for words in ("What the hyphen is made of", "In our runs", 'id="runs"', 'id="claims"')]
    assert places == sorted(places)
    assert (
        'href="09_split_page.html"' in html and "It splits <well>." in structure.text and "L0 is 12." in structure.text
    )
    assert "“-” after <11>" in structure.text and "“-” after <12>" not in structure.text
    assert "the 12 of 14 whose names say best where they fire" in structure.text and 'href="#child-' not in html
    shown = html.split('<table class="runs claims">')[1].split("</table>")[0]
    assert shown.index("Filtering &lt;helps&gt;") < shown.index("Ours") < shown.index("A control")
    text = Structure(f"<table>{shown}</table>").text
    for words in ("+0.20 (+0.15 to +0.25)", "0.61 − 0.41", "runs 4-6", "not tried", "0.02", "0.07", "not supported"):
        assert words in text, words
    assert all(f'href="{name}"' in html for name in ("results.csv", "children.csv", "claims.csv"))


def test_the_answer_is_counted_from_the_tables(results):
    told = answer_sentences({"runs": results, "children": CHILDREN, "claims": CLAIMS})
    assert "0.60 (0.60 to 0.60) in 7 wide runs on filtered data" in told[0]
    assert "0.40 (0.40 to 0.40) in 3 wide runs on all data" in told[0] and "in 3 plain wide runs" in told[0]
    assert "0.72 (0.71 to 0.73) in 2 seeds of children" in told[0]
    assert "published in 8 of 11 runs; all three in 7, where the post saw 6." in told[1]
    assert told[2] == "Strict verdict on 13 wide runs: split 7, partial 6."
    assert told[3] == "Of 2 claims put to the test: 1 not supported, 1 supported."
    assert answer_sentences({}) == ["No training run is finished yet."]
    assert [row["run"] for row in table_rows(results, [])] == list(range(1, 16))


def test_facts_are_shown_escaped(results, tmp_path):
    picture = tmp_path / "made here.png"
    picture.write_bytes(b"png")
    facts = {
        "question": "Is <this> it?", "remarks": ["One <more>."],
        "figures": [{"path": picture, "caption": "Figure <1>"}], "model": {"validation_loss": 3.4123}, "sae": {"parent": 117},
        "text_manifest": {"tokens": 37_900_000, "packages": [{"name": "<pkg>", "sha256": "ab" * 32, "tokens": 7_700_000}]},
        "seconds_total": 1534, "work_seconds": {"text": 60.0, "training": 180.0},
        "peak_memory_bytes": 4_210_000_000, "cache_bytes": 5_310_000_000,
    }  # fmt: skip
    html = build_index(tmp_path / "mini", "mini", {"runs": results}, PAGES, facts).read_text()
    text = Structure(html).text
    for shown in ("Is <this> it?", "One <more>.", "Figure <1>", "3.41", "117", "37,900,000", "<pkg>", "7.7 M",
                  "25 min 34 s", "4.21 GB", "5.31 GB", "abababababab", "the whole study took", "Where that time went",
                  "training 3 min 00 s (75%)"):  # fmt: skip
        assert shown in text, shown
    html = build_index(tmp_path / "mini", "mini", {"runs": results}, PAGES, facts | {"with_claims": True}).read_text()
    text = Structure(html).text
    assert "the whole study, its claims included, took" in text and "the claims' not counted" in text
    assert "Where that time went" not in text
    assert (tmp_path / "mini" / "assets" / "made here.png").read_bytes() == b"png"
    assert 'src="assets/made%20here.png"' in html
    with pytest.raises(UserError, match=r"must be a file; got .*none\.png"):
        build_index(tmp_path / "mini", "mini", {"runs": results}, PAGES, {"figures": ["none.png"]})


def test_results_csv(results, tmp_path):
    results[2]["tokens"] = None  # a whole number stays one where another run lacks it
    write_tables({"runs": results, "children": []}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    read = pd.read_csv(tmp_path / "results.csv")
    assert list(read.columns) == list(meanings(RunResult))
    assert list(read["run"]) == [run for run in range(1, 16) if run != 9]
    assert read["loss_recovered"].isna().sum() == 1
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert "26214400" in lines[1] and ",nan" not in lines[3]


def test_numbers_read_well():
    assert [show(value) for value in (12345, 0.93123, True, None, float("nan"), 1.5e-7, 123456.0, "x")] == [
        "12,345", "0.931", "yes", "", "", "1.50e-07", "123,456", "x",
    ]  # fmt: skip
    assert [show_seconds(value) for value in (1.25, 94.2, 4000, None)] == ["1.2 s", "1 min 34 s", "1 h 06 min", ""]
    assert [show_count(value) for value in (26_214_400, 900, 12_000, None)] == ["26.2 M", "900", "12 k", ""]
    assert [show_bytes(value) for value in (4_210_000_000, 12)] == ["4.21 GB", "12 B"]
