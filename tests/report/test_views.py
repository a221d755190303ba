"""Coloured text: any token is shown as text, nothing is fetched, and the picture is there before any script has run."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saelib.report import views
from saelib.report.page import outside_references
from saelib.report.views import (
    NEGATIVE,
    POSITIVE,
    VIEW_MIME,
    Mount,
    figure_style,
    inert,
    script_json,
    top_contexts,
    top_features,
    view_html,
)

HOSTILE = [
    "</script>", "<b>", '"', "'", "&", "&amp;", "<!--", "<script>alert(1)</script>", "]]>", "\u2028", "\u2029", "\n", "\0",
    '<img src="https://example.org/x.png" onerror=alert(1)>', "\ud800", "<", "<|BOS|>", "`", "${x}", "\\",
]  # fmt: skip


class Text(HTMLParser):
    """The text of a piece of HTML, and the tags in it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.tags = "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        self.tags.append("/" + tag)

    def handle_comment(self, data):
        self.tags.append("!--")

    def handle_decl(self, decl):
        self.tags.append("!")

    def handle_pi(self, data):
        self.tags.append("?")

    def unknown_decl(self, data):
        self.tags.append("![")

    def handle_data(self, data):
        self.text += data


def scripts(html: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)


@pytest.mark.parametrize("token", HOSTILE)
def test_a_token_means_nothing_as_html(token):
    """circuitsvis assigns tokens to innerHTML."""
    assert Text(inert(token)).tags == []


@given(st.text())
def test_no_text_means_anything_as_html(token):
    as_html = Text(inert(token))
    assert as_html.tags == []
    assert as_html.text == inert(token)  # ... and reads there as it does in the tooltip


@given(st.recursive(st.text() | st.floats(allow_nan=False, allow_infinity=False), st.lists))
def test_script_json_cannot_leave_its_script(value):
    text = script_json(value)
    assert json.loads(text) == value
    assert "<" not in text
    assert text.isascii()


def test_hostile_tokens_leave_the_page_whole():
    html = view_html(top_contexts([HOSTILE], [np.linspace(-1, 1, len(HOSTILE))], caption="<i>caption</i>").data())
    ours = {"div", "p", "span", "script", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(Text(html).tags) == ours | {f"/{tag}" for tag in ours}
    assert len(scripts(html)) == 1
    assert outside_references(html) == []
    assert html.endswith("</script></div>")


def test_the_fallback_shows_the_tokens_as_written():
    view = top_contexts([["<b>", " &amp;", "\n"]], [[0.0, 2.0, -1.0]])
    (mount,) = [piece for piece in view.pieces if isinstance(piece, Mount)]
    assert Text(mount.fallback).text == "<b>\xa0&amp;↵"
    assert f"background:{POSITIVE}" in mount.fallback
    assert f"background:{NEGATIVE}" in mount.fallback
    assert 'title="2"' in mount.fallback


def test_props_are_what_circuitsvis_takes():
    view = top_contexts([["a", "b"]], [torch.tensor([0.5, 2.0])], max_value=4.0)
    (mount,) = view.data()["mounts"]
    assert mount["component"] == "ColoredTokens"
    assert mount["props"]["tokens"] == ["a", "b"]
    assert mount["props"]["values"] == [0.5, 2.0]
    assert mount["props"]["maxValue"] == 4.0
    assert mount["props"]["minValue"] < 0  # zero stays white: circuitsvis divides by it


def test_the_component_exists_in_the_installed_bundle():
    assert "ColoredTokens:()=>" in views.bundle()
    assert "sourceMappingURL" not in views.bundle()


def test_ids_are_unique_even_when_one_view_is_shown_twice():
    view = top_contexts([["a"], ["b"]], [[1.0], [2.0]])
    ids = re.findall(r'id="(view-\d+)"', view_html(view.data()) + view_html(view.data()))
    assert len(ids) == len(set(ids)) == 4


def test_the_bundle_comes_along_once_a_kernel(monkeypatch):
    monkeypatch.setattr(views, "_bundle_sent", False)
    first, second = (top_contexts([["a"]], [[1.0]])._repr_mimebundle_() for _ in range(2))
    assert len(first["text/html"]) > 1_000_000
    assert len(second["text/html"]) < 2_000
    assert len(scripts(first["text/html"])) == 2  # the bundle names </script> in a string: it must not end there
    assert outside_references(first["text/html"]) == []
    assert len(json.dumps(first[VIEW_MIME])) < 2_000  # what a report page takes
    assert first["text/plain"].split() == ["1.00", "a"]


def test_top_contexts_lists_scores_notes_and_one_scale():
    view = top_contexts(
        [["x", "-"], ["<td>"]],
        [[0, 5.82], [1.0]],
        columns={"activation": [5.82, 1.0], "class": ["count", "<u>"]},
        caption="Feature 826",
    )
    html, mounts = view.data()["html"], view.data()["mounts"]
    assert [mount["props"]["maxValue"] for mount in mounts] == [5.82, 5.82]
    assert "5.82" in Text(html).text
    assert "<u>" in Text(html).text
    assert "u" not in Text(html).tags
    assert Text(html).tags.count("tr") == 3


def test_top_features_puts_the_strongest_first():
    acts = torch.zeros(3, 8)
    acts[1, 5], acts[1, 2], acts[1, 7], acts[0, 1] = 6.82, 1.24, 1.05, 9.0
    text = Text(top_features(["multi", "-", "million"], acts, position=1, k=2, labels={5: "count"}).data()["html"]).text
    assert text.index("6.82") < text.index("1.24")
    assert "5: count" in text
    assert "1.05" not in text
    assert "No feature is active" in top_features(["a"], torch.zeros(1, 4), position=0).data()["html"]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"equal length; got 1 and 2"):
        top_contexts([["a"]], [[1, 2]])
    with pytest.raises(ValueError, match="must be finite"):
        top_contexts([["a"]], [[float("nan")]])
    with pytest.raises(ValueError, match=r"position must be in \[-1, 1\); got 1"):
        top_features(["a"], torch.zeros(1, 4), position=1)
    with pytest.raises(ValueError, match="one row a token; got 2 rows for 1 tokens"):
        top_features(["a"], torch.zeros(2, 4), position=0)


def test_the_same_figure_gives_the_same_small_file(tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"backend": "agg"}):
        figure_style()
        from matplotlib.figure import Figure

        for name in ("a.png", "b.png"):
            figure = Figure()
            figure.subplots().plot([0, 1, 3])
            figure.savefig(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 60_000
