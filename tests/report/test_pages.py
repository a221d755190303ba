"""The pages: whole, offline, true to their inputs, readable; and the three lines of docs/using.md."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from saelib.acts.activations import text_store
from saelib.acts.store import ActivationStore
from saelib.base.errors import UserError
from saelib.interpret import examples, features
from saelib.interpret.compare import nearest_features
from saelib.lm.model import HOOK_NAME, LanguageModel, load_embedded
from saelib.report import charts, tools
from saelib.report.decoder_map import decoder_map, map_view
from saelib.report.feature_page import Member, feature_page, summarise
from saelib.report.html_view import table
from saelib.report.page import file_references, outside_references
from saelib.report.views import VIEW_MIME
from saelib.sae.sae import SAE, SAEConfig

TEXT = "A well-known <b>three-point</b> landing & a multi-millionaire's long-standing </script> 2-day plan. " * 40
VOID = {"meta", "link", "br", "img", "input", "hr", "rect", "circle", "line"}


class Balance(HTMLParser):
    """What is open at the end, and every tag."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
            self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_embedded()


@pytest.fixture(scope="module")
def store(model: LanguageModel) -> ActivationStore:
    return text_store(model, [TEXT, TEXT[::-1]])


def directions(store: ActivationStore, d_sae: int, seed: int, centred: bool | None = False) -> SAE:
    """Features that read the directions of some of the store's own activations: each fires on part of the tokens."""
    x = store.rows(slice(None))
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:d_sae]
    cfg = SAEConfig(store.d_in, d_sae, HOOK_NAME, "saelib-mini", centred, metadata={"seed": seed})
    sae = SAE(cfg)
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
        unit = torch.nn.functional.normalize(x[chosen] - sae.b_dec, dim=1)
        sae.W_dec.copy_(unit)
        sae.W_enc.copy_(unit.T)
        sae.b_enc.copy_(-((x - sae.b_dec) @ unit.T).quantile(0.9, dim=0))
        sae.b_enc[0] = -1e4  # never fires
    return sae


@pytest.fixture(scope="module")
def narrow(store: ActivationStore) -> SAE:
    return directions(store, 12, 0)


@pytest.fixture(scope="module")
def wide(store: ActivationStore) -> SAE:
    return directions(store, 40, 1)


def checked(path: Path) -> tuple[Balance, dict]:
    """A saved page's structure and its JSON sibling; the page refers to no host and no file."""
    html = path.read_text(encoding="utf-8")
    assert outside_references(html) == [] and file_references(html) == []
    page = Balance(html)
    assert page.open == []
    assert "b" not in page.tags or "<b>three" not in html  # the text's own markup stays text
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["versions"]["saelib"] and "device" in record
    return page, record


# --- the feature page --------------------------------------------------------------------------------------------------


def test_the_docs_make_a_feature_page_in_three_lines(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: SAE
) -> None:
    block = re.search(
        r"```python\n(from saelib\.report import tools\n.*?)```", (root / "docs" / "using.md").read_text(), re.DOTALL
    )
    assert block is not None
    lines = [line for line in block.group(1).splitlines() if line]
    assert len(lines) == 4, "an import and three lines"
    monkeypatch.chdir(tmp_path)
    wide.save(tmp_path / "my-sae")
    (tmp_path / "my-text.txt").write_text(TEXT)
    feature = int(re.search(r"store, (\d+)\)", block.group(1)).group(1))
    assert feature < wide.cfg.d_sae
    exec(block.group(1), {})
    page, record = checked(tmp_path / "feature.html")
    assert record["feature"] == feature and f"Feature {feature}" in page.text


def test_every_tool_is_in_the_docs(root: Path) -> None:
    page = (root / "docs" / "using.md").read_text()
    for name in tools.__all__:
        assert hasattr(tools, name)
        assert f"`{name}" in page, f"{name} is not in the table of docs/using.md"


def test_a_feature_page_says_what_the_tools_say(
    store: ActivationStore, model: LanguageModel, wide: SAE, narrow: SAE, tmp_path: Path
) -> None:
    view = feature_page(
        wide, model, store, 7, name="<i>name</i>", parent=Member(narrow, 2), children=[Member(wide, 3, "c")]
    )
    assert view.save(tmp_path / "seven.html") == tmp_path / "seven.html"
    page, record = checked(tmp_path / "seven.html")
    density = features.activation_density(wide, store, 7).iloc[0]
    assert record["active"] == density["active"] and record["max"] == pytest.approx(density["max"], rel=1e-5)
    shown = examples.highest_activating_tokens(wide, model, store, 7, k=10)
    top = [row for row in record["examples"] if row["band"] == "top"]
    assert [row["row"] for row in top] == shown["row"].tolist()
    assert {row["band"] for row in record["examples"]} == {"top", "q=0.9", "q=0.5", "q=0.1"}
    nearest = nearest_features(wide, 7, 6, store=store)
    assert [row["other"] for row in record["nearest"]] == nearest["other"].tolist()
    assert sum(bar["tokens"] for bar in record["histogram"]) == density["active"]
    assert [row["relation"] for row in record["family"]] == ["parent", "child"]
    assert "<i>name</i>" in page.text and "i" not in page.tags
    assert f"{int(density['active']):,} of {store.n_tokens:,}" in page.text
    for words in ("How strongly it fires", "next token", "fires most", "fires less", "Parent and children", "Nearest"):
        assert words in page.text


def test_a_page_shows_itself_in_a_notebook(store: ActivationStore, model: LanguageModel, wide: SAE) -> None:
    bundle = feature_page(wide, model, store, 7, firing=False)._repr_mimebundle_()
    data = bundle[VIEW_MIME]
    assert data["mounts"] and all(f'id="{mount["id"]}"' in data["html"] for mount in data["mounts"])
    assert Balance(data["html"]).open == []
    assert "Feature 7" in bundle["text/plain"]


def test_the_page_of_a_feature_that_never_fires(
    store: ActivationStore, model: LanguageModel, wide: SAE, tmp_path: Path
) -> None:
    feature_page(wide, model, store, 0).save(tmp_path / "zero.html")
    page, record = checked(tmp_path / "zero.html")
    assert f"It fires on none of {store.n_tokens:,} tokens." in page.text
    assert record["active"] == 0 and record["examples"] == [] and record["mean"] is None


def test_summaries_of_several_features_are_those_of_each(
    store: ActivationStore, model: LanguageModel, wide: SAE
) -> None:
    for both, feature in zip(summarise(wide, model, store, [9, 4]), [9, 4], strict=True):
        (alone,) = summarise(wide, model, store, feature)
        for name in ("examples", "histogram", "logits", "nearest"):
            a, b = getattr(both, name), getattr(alone, name)
            pd.testing.assert_frame_equal(a, b, check_exact=False, atol=1e-5)


def test_a_text_about_code_is_not_taken_for_code(model: LanguageModel, tmp_path: Path) -> None:
    """`"from","` in a view's data reads like an import: a page on Python code was refused by the check for loads."""
    code = "from os import path\nimport 'x.js' from \"y\"; a.src = 'b.png'; fetch('//example.org/z')\n" * 40
    store = text_store(model, [code])
    feature_page(directions(store, 8, 0), model, store, 3, k=40).save(tmp_path / "code.html")
    _, record = checked(tmp_path / "code.html")
    assert any("import" in "".join(row["tokens"]) for row in record["examples"])


def test_shared_assets_lie_beside_the_page(
    store: ActivationStore, model: LanguageModel, wide: SAE, tmp_path: Path
) -> None:
    feature_page(wide, model, store, 7, firing=False).save(tmp_path / "a.html", standalone=False)
    assert (tmp_path / "a.html").stat().st_size < 150_000
    assert (tmp_path / "assets" / "circuitsvis.js").is_file()
    assert outside_references((tmp_path / "a.html").read_text()) == []


def test_bad_input_of_a_page_is_one_line(store: ActivationStore, model: LanguageModel, wide: SAE) -> None:
    with pytest.raises(UserError, match=r"feature must be a whole number in \[0, d_sae=40\); got 40"):
        feature_page(wide, model, store, 40)
    with pytest.raises(UserError, match="center_writing_weights must be that of the activations"):
        feature_page(directions(store, 4, 0, centred=True), model, store, 1)


# --- charts, tables, text, map -------------------------------------------------------------------------------------------


def test_charts_are_whole_and_say_their_numbers() -> None:
    histogram = pd.DataFrame({"feature": 1, "low": [0.0, 0.5], "high": [0.5, 1.0], "tokens": [90, 1]})
    svg = charts.histogram_svg(histogram)
    assert Balance(svg).open == [] and "activation 0.5 to 1: 1 tokens" in svg
    heights = [float(h) for h in re.findall(r'height="([\d.]+)" fill', svg)]
    assert heights[0] > 50 and heights[1] >= 1
    assert charts.histogram_svg(histogram[:0]) == ""


def test_a_table_keeps_feature_numbers_whole() -> None:
    made = table(pd.DataFrame({"feature": [3334], "tokens": [3334], "share": [0.123]}), percent=["share"])
    assert made["rows"] == [["3334", "3,334", "12.3%"]]


def test_own_text_is_harvested_once_and_by_document(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT.upper())
    store = text_store(model, tmp_path)
    assert store.manifest["model_key"] == model.key and store.n_tokens > 1000
    again = text_store(model, [TEXT, TEXT.upper()])
    assert again.key == store.key
    ids = model.tokenizer.encode(TEXT).ids
    assert store.token_ids[: len(ids)].tolist() == ids and store.token_ids[len(ids)] == model.eos
    small = text_store(model, tmp_path, max_contexts=2)
    assert np.array_equal(small.contexts, store.contexts[:2])


def test_text_that_cannot_be_read_is_one_line(model: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 200)
    for text, match in (
        (tmp_path / "none.txt", "text must be a file, or a folder with .txt files"),
        (tmp_path / "latin.txt", "text must be UTF-8"),
        (["short"], "the text must fill at least one context of 127 tokens; got 3 tokens"),
        ([], "must fill at least one context of 127 tokens; got 0 tokens"),
    ):
        with pytest.raises(UserError, match=match):
            text_store(model, text)


def made_map(narrow: SAE, wide: SAE) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = [("narrow", f) for f in range(12)] + [("wide", f) for f in range(40)]
    return pd.DataFrame(names, columns=["group", "feature"]).assign(x=rng.normal(size=52), y=rng.normal(size=52))


def test_a_map_can_be_read_by_pointing(narrow: SAE, wide: SAE, tmp_path: Path) -> None:
    view = map_view(
        made_map(narrow, wide), hover={("wide", 3): "fires on <b>"}, marked={("wide", 3): "child", ("narrow", 1): "p"}
    )
    view.save(tmp_path / "map.html")
    page, record = checked(tmp_path / "map.html")
    assert page.tags.count("circle") == 52 + 2  # and two of the legend
    assert "wide, feature 3: fires on <b>" in page.text and "narrow, feature 11" in page.text
    assert len(record["points"]) == 52


def test_a_map_without_umap_names_the_extra(narrow: SAE, wide: SAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r'a map needs the package umap-learn; got none: pip install "saelib\[umap\]"'):
        decoder_map({"narrow": narrow, "wide": wide})


def test_a_map_of_unlike_or_too_few_rows_is_refused(narrow: SAE) -> None:
    with pytest.raises(UserError, match=r"one d_in; got \[8, 256\]"):
        decoder_map({"a": narrow, "b": SAE(SAEConfig(8, 4, HOOK_NAME, "made"))})
    with pytest.raises(UserError, match="more than 15 decoder rows; got 12"):
        decoder_map({"a": narrow})


@pytest.mark.slow
def test_umap_puts_like_rows_together() -> None:
    """Three tight bundles of directions, in two SAEs, come out as three clusters; the same seed gives the same map."""
    pytest.importorskip("umap")
    generator = torch.Generator().manual_seed(0)
    saes = {}
    for name in ("a", "b"):
        sae = SAE(SAEConfig(16, 60, HOOK_NAME, "made"))
        with torch.no_grad():
            sae.W_dec.copy_(torch.eye(16)[torch.arange(60) % 3] + 0.05 * torch.randn(60, 16, generator=generator))
            sae.W_dec[59] = 0
        saes[name] = sae
    points = decoder_map(saes)
    assert len(points) == 118  # a row of zeros points nowhere
    bundle = points["feature"].to_numpy() % 3
    xy = points[["x", "y"]].to_numpy()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.eye(118) * 1e9
    assert (bundle[distance.argmin(1)] == bundle).all()
    pd.testing.assert_frame_equal(points, decoder_map(saes))
