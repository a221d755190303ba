"""The page of a split: every section, offline, light, true to the split; a verdict of nothing to split says as much."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_split import documents, hyphen_sae, judged_as, made_up_split, without_children

from saelib import cli
from saelib.acts.activations import Activations, harvest_documents
from saelib.base.errors import UserError
from saelib.lm.model import load_embedded
from saelib.report.children_charts import contexts_svg, k_curve_svg, strip
from saelib.report.children_page import UNFINISHED, WIDE_ROWS, children_page, split_html
from saelib.report.children_tables import headline_parts
from saelib.report.children_words import beaten_by, leak_sentence, verdict_sentence
from saelib.report.page import file_references, outside_references
from saelib.report.split_report import example_text, split_text, write_split
from saelib.split.engine import SplitConfig
from saelib.split.methods import get_method
from saelib.split.result import Split
from saelib.split.verdict import Verdict
from saelib.split.yardstick import Interval

pytestmark = pytest.mark.slow  # on one split of planted children, which takes seconds

SECTIONS = [
    "What the parent is", "What it is made of", "What it is told apart by", "The children, a card each",
    "Which child fires in running text", "How the children relate", "What the swap does to the SAE", "Controls",
    "How many children", "What it cost",
]  # fmt: skip
VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "circle", "line", "polyline"}


class Outline(HTMLParser):
    """Headings in order, the text, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.headings: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag == "h2":
            self.headings.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open:
            self.text += data
            if "h2" in self.open:
                self.headings[-1] += data


@pytest.fixture(scope="module")
def acts() -> Activations:
    return harvest_documents(load_embedded(), documents())


@pytest.fixture(scope="module")
def split(acts: Activations) -> Split:
    return made_up_split(acts, hyphen_sae(acts), 3, K=14, n_steps=120, how="hyphen")


@pytest.fixture
def nothing(split: Split) -> Split:
    return without_children(split)


def read(path: Path) -> tuple[str, Outline]:
    html = path.read_text(encoding="utf-8")
    assert outside_references(html) == [] and file_references(html) == []
    outline = Outline(html)
    assert outline.open == []
    return html, outline


def test_every_section_is_there_in_order_and_the_page_is_light_and_offline(split: Split, tmp_path: Path) -> None:
    path = children_page(split).save(tmp_path / "index.html")
    html, outline = read(path)
    assert [heading for heading in outline.headings if heading in SECTIONS] == SECTIONS
    assert len(html.encode()) < 3_000_000
    assert path.with_suffix(".json").exists()


def test_what_stands_on_the_page_is_what_the_split_says(split: Split, tmp_path: Path) -> None:
    html, outline = read(children_page(split).save(tmp_path / "index.html"))
    assert "6 of 8 contexts" in outline.text
    n = len(split.children)
    assert html.count('<section class="card"') == min(n, 12)
    assert n <= 12 or f"{n - 12} more children in brief" in outline.text
    for row in split.children.itertuples():
        assert str(row.feature) in outline.text
    first = split.children.iloc[0]
    assert f"{100 * first['share']:.1f}%" in outline.text
    assert "0.310→0.160" in outline.text
    for name in split.controls["name"]:
        assert name in outline.text
    assert html.count('<tr class="ours">') == 1
    assert "where the parent is silent" in outline.text or (split.children["leak"] == 0).all()


def test_the_page_says_how_many_children_other_seeds_find_too(split: Split) -> None:
    stability = np.linspace(0.3, 0.7, len(split.children))
    found = replace(split, children=split.children.assign(stability=stability), stability=0.5)
    name, _, note = headline_parts(found)[-1]
    assert name.startswith("seeds agree")
    assert note == f"{(stability >= 0.5).sum()} of {len(stability)} children come back (≥ 0.5)"


def test_children_beyond_the_first_are_folded(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("children_page", "children_tables"):
        monkeypatch.setattr(f"saelib.report.{module}.MOST_CARDS", 1)
    html, outline = read(children_page(split).save(tmp_path / "index.html"))
    assert html.count('<section class="card"') == 1
    assert f"{len(split.children) - 1} more children in brief" in outline.text
    assert f"and {len(split.children) - 1} more children" in split_html(split)


def test_text_that_looks_like_markup_stays_text(split: Split, tmp_path: Path) -> None:
    children = split.children.copy()
    children.loc[0, "name"] = 'after "</script><img src=x>"'
    odd = replace(split, children=children)
    html, outline = read(children_page(odd).save(tmp_path / "index.html"))
    assert 'after "</script><img src=x>"' in outline.text
    assert "<img" not in html and "<b>bold" not in html
    assert "<img" not in split_html(odd)


def test_activations_beside_each_other_are_those_of_parent_and_child(split: Split) -> None:
    card = children_page(split).context["cards"][0]
    best = card["examples"][0]["rows"][0]
    on, feature = split.tokens.on["test"], card["feature"]
    child = split.sae.encode(on.x)[:, feature].detach().numpy()
    # The strongest may stand at the edge of its context, where there is little text to show.
    (at,) = np.flatnonzero(np.isclose(child, best["child"], atol=1e-4))[:1]
    assert best["child"] > np.quantile(child, 0.9)
    assert np.isclose(on.parent[child == child[at]], best["parent"], atol=1e-3).any()


def test_nothing_to_split_is_as_informative(nothing: Split, tmp_path: Path) -> None:
    _, outline = read(children_page(nothing).save(tmp_path / "index.html"))
    for heading in ("What the parent is", "What it is told apart by", "What the swap does to the SAE", "Controls"):
        assert heading in outline.headings
    assert "The children, a card each" not in outline.headings
    assert "Nothing to split here" in outline.text
    assert "contexts were tried" in outline.text and "No child was kept" in outline.text
    assert "Nothing to split here" in split_html(nothing) and "Nothing to split here" in split_text(nothing)


@pytest.mark.parametrize("verdict", list(Verdict))
def test_every_verdict_has_its_sentence(verdict: Verdict, split: Split) -> None:
    found = judged_as(split, verdict)
    assert verdict_sentence(found).endswith(".") and len(verdict_sentence(found)) > 30
    assert (verdict_sentence(found) in split_html(found)) or "&#39;" in split_html(found)


def test_a_control_that_does_as_well_is_said_first(split: Split, tmp_path: Path) -> None:
    assert beaten_by(split) == []
    controls = split.controls.copy()
    controls.loc[controls["name"] == "random decoder", "S_2"] = 0.9
    found = replace(split, controls=controls)
    (words,) = beaten_by(found)
    assert "random decoder" in words and "0.90 against 0.66" in words
    _, outline = read(children_page(found).save(tmp_path / "index.html"))
    assert outline.text.index("Read this first") < outline.text.index("It splits")
    assert split_text(found).index("Read this first") < split_text(found).index("verdict:")


def test_which_children_leak_and_the_mean_in_one_sentence() -> None:
    """Above 5% and not at it; a leak that is not known is no leak and not averaged."""
    children = pd.DataFrame({"feature": [40, 41, 42, 43], "name": ["after “a”", "", "is “c”", "is “d”"]})
    said = leak_sentence(children.assign(leak=[0.06, 0.2, 0.05, np.nan]))
    assert said == (
        "2 of 3 children leak above 5%: child 41 (20.0%), after “a” (6.0%); the mean over children is 10.3% "
        "(aimed at: below 5%)."
    )
    assert leak_sentence(children.assign(leak=[0.06, 0.0, 0.0, 0.0])).startswith(
        "1 of 4 children leaks above 5%: after"
    )
    none = leak_sentence(children.assign(leak=[0.05, 0.01, 0.0, 0.0]))
    assert none == "No child leaks above 5%; the mean over children is 1.5% (aimed at: below 5%)."
    assert leak_sentence(children.assign(leak=np.nan)) == leak_sentence(children.assign(leak=0.0).iloc[:0]) == ""


def test_a_child_that_leaks_is_marked_wherever_it_stands(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its card, in both tables of the page, in the brief view and on the terminal; the others are not."""
    n = len(split.children)
    assert n > 2
    leak = np.full(n, 0.01)
    leak[[0, n - 1]] = 0.124, 0.31
    found = replace(split, children=split.children.assign(leak=leak))
    for module in ("children_page", "children_tables"):
        monkeypatch.setattr(f"saelib.report.{module}.MOST_CARDS", n - 1)
    html, outline = read(children_page(found).save(tmp_path / "index.html"))
    assert leak_sentence(found.children) in outline.text and f"2 of {n} children leak above 5%" in outline.text
    cards = html.split('<section class="card"')[1:]
    assert ["Leaks: 12.4% of its firings" in card for card in cards] == [True] + [False] * (n - 2)
    assert '<td class="num leaky">31% leaks</td>' in html
    for shown, marked in ((html, 2), (split_html(found), 1)):
        assert shown.count('<span class="copy">leaks</span>') == marked
        assert shown.count('<td class="num leaky">12.4%</td>') == 1
    rows = [line for line in split_text(found).splitlines() if re.match(r" *\d+ +\d+\.\d%", line)]
    assert ["%!" in row.replace("% !", "%!") for row in rows] == [share > 0.05 for share in leak]
    assert leak_sentence(found.children) in split_text(found)


def test_the_page_says_where_wide_saes_stand(split: Split, tmp_path: Path) -> None:
    """By the command's own methods, or where a page has them itself."""
    _, outline = read(children_page(split).save(tmp_path / "index.html"))
    assert outline.text.count(WIDE_ROWS) == 1
    for name in ("all-data", "context-filter", "token-filter", "warm"):
        assert name in WIDE_ROWS and get_method(name).kind == "wide"
    _, outline = read(children_page(split, wide_rows="They stand <below>.").save(tmp_path / "study.html"))
    assert "They stand <below>." in outline.text and WIDE_ROWS not in outline.text


def test_prompts(split: Split, tmp_path: Path) -> None:
    _, outline = read(
        children_page(split, ["The long-term plan was read. The 3-point plan"]).save(tmp_path / "index.html")
    )
    assert "Which child fires on the prompts" in outline.headings and "3-point plan" in outline.text
    with pytest.raises(UserError, match="the text must hold a token on which the parent exceeds tau"):
        children_page(split, ["nothing of the kind"])


def test_a_piece_of_text_in_which_the_parent_fires(split: Split) -> None:
    frame = split.on(example_text(split))
    assert (frame["parent"] > split.parent.tau).any()


def test_a_folder_is_written(split: Split, tmp_path: Path) -> None:
    index = write_split(split, tmp_path / "out")
    assert index.name == "index.html"
    names = {"split.json", "children.csv", "separation.csv", "controls.csv", "index.json", "sae"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError):
        write_split(split, tmp_path / "bad", ["nothing of the kind"])
    assert not (tmp_path / "bad").exists()


def test_the_terminal_shows_a_row_a_child(split: Split) -> None:
    lines = split_text(split).splitlines()
    assert lines[-1].startswith("verdict: It splits")
    assert sum(bool(re.match(r" *\d+ +\d+\.\d%", line)) for line in lines) == len(split.children)


def test_the_command_prints_the_children_and_writes_the_folder(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    pages: list[str] = []

    def answer(sae: Any, feature: int, acts: Any, cfg: SplitConfig, first: Callable[[Split], Path] | None) -> Split:
        asked.update(vars(cfg), feature=feature)
        if first:
            pages.append(first(split).read_text())
        return split

    monkeypatch.setattr("saelib.sae.load.load_sae", lambda folder: split.original)
    monkeypatch.setattr("saelib.study.texts.activations", lambda *given, **options: split.acts)
    monkeypatch.setattr("saelib.split.engine.split_feature", answer)
    command = ["split", "--sae", "my-sae", "--feature", "3", "--contexts", "hyphen", "--K", "14", "--seed", "2"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "verdict: It splits" in out and "open" not in out
    assert (asked["feature"], asked["contexts"], asked["K"], asked["seed"]) == (3, "hyphen", 14, 2)
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "open " in capsys.readouterr().out
    assert len(pages) == 1 and UNFINISHED in pages[0]
    assert UNFINISHED not in (tmp_path / "out" / "index.html").read_text()


def test_in_brief_it_carries_its_own_style_and_no_script(split: Split) -> None:
    html = split_html(split)
    assert "<style>" in html and "<script" not in html
    assert outside_references(html) == []


def test_charts_of_nothing_are_nothing() -> None:
    assert contexts_svg([]) == "" and strip(float("nan"), 0.0, 1.0) == ""
    assert k_curve_svg(pd.DataFrame({"K": [16], "fvu": [0.2], "chosen": [True]})) == ""


def test_children_that_help_only_together_are_not_called_nothing(split: Split) -> None:
    one = replace(split, judgement=replace(split.judgement, verdict=Verdict.NOT_SPLIT))
    for low, expected in ((0.1, "but together they help"), (-0.1, "Nothing to split here")):
        assert expected in verdict_sentence(replace(one, added={2: Interval(0.2, low, 0.3)}))
