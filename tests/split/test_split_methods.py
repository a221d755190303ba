"""Every method of the registry on a small made-up parent whose children are known; and a stranger's own method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array

from saelib.base.errors import UserError
from saelib.bench.known import KnownActivations, World, known_activations, known_sae
from saelib.bench.matching import match
from saelib.split import controls, local, methods
from saelib.split.again import RIDGE, SHARE
from saelib.split.children import ChildrenConfig, Dictionary, Pools
from saelib.split.engine import SplitConfig
from saelib.split.judged import Judge, Judged
from saelib.split.methods import Meter, Method, Task, get_method, make, method, method_names
from saelib.split.named import to_names
from saelib.split.parent import gather
from saelib.split.refit import START, own_firings, refit_encoders
from saelib.split.split_by import split_by
from saelib.split.split_count import f1, split_count
from saelib.split.stability import iou
from saelib.split.tokens import TokenSet
from saelib.split.verdict import Verdict
from saelib.split.wide import WideConfig
from saelib.split.work import Work

WORLD = World("tiny", d_in=24, n_background=40, contexts=(200, 120, 120))
CONFIG = SplitConfig(contexts="automatic", least=20, seeds=1, children=ChildrenConfig(n_steps=250))
WIDE = WideConfig(d_sae=48, n_tokens=60_000, batch_size=512, reinit_every=50)
FEW = ("children-16", "children-32", "children-64", "children-128", "children-256", "children-512", "children-cheap", "named-128",
       "named-clean", "all-data-3", "all-data-10", "all-data-wider")  # fmt: skip
"""The same code as another row, at another size."""


@pytest.fixture(scope="module")
def judge_(session_cache: Path) -> Judge:
    acts = known_activations(WORLD)
    sae, parent = known_sae(WORLD)
    tokens = gather(acts, sae, parent)
    return Judge(Work.of(acts, tokens, sae, CONFIG.contexts, CONFIG.least))


def task(judge_: Judge, seed: int = 0, K: int = 8) -> Task:
    return Task(known_activations(WORLD), judge_.work, K, seed, CONFIG.children, WIDE, Meter())


def run(judge_: Judge, name: str, seed: int = 0) -> Judged:
    return judge_.run(get_method(name), task(judge_, seed), swap=False)


@pytest.mark.parametrize("name", [name for name in method_names() if name not in FEW])
def test_every_method_is_finite_and_the_same_twice(name: str, judge_: Judge) -> None:
    one, two = run(judge_, name), run(judge_, name)
    clock = ("seconds", "seconds_shared")
    left, right = ({k: v for k, v in r.row.items() if k not in clock} for r in (one, two))
    assert str(left) == str(right)
    assert np.array_equal(one.fires, two.fires)
    for k in ("S_1", "S_2", "S_4", "S_2_low", "S_2_high", "tokens_sae", "seconds"):
        assert np.isfinite(float(one.row[k])), k
    if one.sae is not None:
        assert all(bool(p.isfinite().all()) for p in one.sae.parameters())
        assert 0 < float(one.row["fvu_on_P"]) < 1.5 and float(one.row["l0_on_P"]) > 0
        assert 0 <= float(one.row["leak"]) <= 1


@pytest.fixture(scope="module")
def ours_and_nulls(judge_: Judge) -> dict[str, Judged]:
    return {name: run(judge_, name) for name in ("children", "rest", "quantiles", "permuted", "wrong-parent")}


def test_the_planted_children_are_told_apart_by_ours_and_not_by_nulls(ours_and_nulls: dict[str, Judged]) -> None:
    S = {name: float(found.row["S_2"]) for name, found in ours_and_nulls.items()}
    assert S["children"] > 0.6
    assert S["wrong-parent"] < S["children"] - 0.3, S
    assert all(abs(S[name]) < 0.2 for name in ("rest", "quantiles", "permuted")), S


def test_bands_of_the_parent_and_permuted_labels_are_not_split(
    judge_: Judge, ours_and_nulls: dict[str, Judged]
) -> None:
    """By the strict verdict, which the planted children pass. The bands are silent off P: they leak nowhere."""
    children, permuted = ours_and_nulls["children"], ours_and_nulls["permuted"]
    assert children.row["verdict"] == "split" and children.made is not None
    assert (permuted.row["verdict"], permuted.row["passed"]) == ("not split", 0)
    bands = local.quantiles(task(judge_, K=len(children.made.theta)))
    assert isinstance(bands, dict) and all((band.sum(1) == 1).all() for band in bands.values())
    silent = {name: {s: 0 * a for s, a in children.made.acts[name].items()} for name in ("weak", "off")}
    made = children.made._replace(acts={"on": bands, **silent})
    found = judge_.work.judge(made, {"rest": judge_.rest_separation, "children": judge_.work.alone(bands)}, None)
    assert (found.verdict, found.passed) == (Verdict.NOT_SPLIT, 0)
    assert all("added" in c.failed for c in found.contexts if c.passed is not None)


def test_negatives_keep_children_silent_elsewhere(judge_: Judge) -> None:
    assert float(run(judge_, "children").row["leak"]) < 0.2 < 0.6 < float(run(judge_, "no-negatives").row["leak"])


@pytest.mark.slow
def test_seeds_differ(judge_: Judge) -> None:
    for name in ("children", "ica", "spherical-k-means", "matryoshka", "random-decoder"):
        assert not np.array_equal(run(judge_, name).fires, run(judge_, name, seed=1).fires), name


def test_children_that_cannot_keep_to_their_leak_are_left_out(judge_: Judge) -> None:
    found = get_method("no-negatives").make(task(judge_))
    assert isinstance(found, Dictionary)
    every, held = judge_.work.install(found), judge_.work.install(found, most_leak=0.1)
    assert 0 < len(held.theta) < len(every.theta) and bool(held.theta.isfinite().all())
    assert judge_.work.foreign(held) < 0.15 < 0.5 < judge_.work.foreign(every)
    with pytest.raises(UserError, match=r"keep to the leak it may have; got 0"):
        judge_.work.install(found, most_leak=-1.0)


def test_only_features_that_do_not_leak_are_left(judge_: Judge) -> None:
    whole, clean = run(judge_, "all-data"), run(judge_, "all-data-clean")
    assert float(clean.row["features"]) < float(whole.row["features"])
    assert float(clean.row["S_2"]) < float(whole.row["S_2"])


def test_cost_is_counted(judge_: Judge) -> None:
    t = task(judge_)
    judge_.run(get_method("children"), t, swap=False)
    cfg, pools = t.config, t.targets
    n = sum(
        min(len(x), size)
        for x, size in ((pools.x_on, cfg.batch_on), (pools.x_weak, cfg.batch_weak), (pools.x_off, cfg.batch_off))
    )
    assert t.meter.tokens_sae == cfg.n_steps * n
    assert t.meter.arithmetic == 10 * cfg.n_steps * n * WORLD.d_in * 8
    plain, filtered = run(judge_, "all-data"), run(judge_, "token-filter")
    assert plain.row["seconds"] == 0 and float(plain.row["seconds_shared"]) > 0  # one training serves every parent
    assert filtered.row["seconds_shared"] == 0 and float(filtered.row["seconds"]) > 0
    assert plain.row["tokens_sae"] == 118 * 512


def test_a_kept_training_is_not_done_again(judge_: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(judge_, "warm")
    monkeypatch.setattr("saelib.sae.kept.train", lambda *a, **k: pytest.fail("trained again"))
    assert str(run(judge_, "warm").row) == str(first.row)


# --- the pieces ---------------------------------------------------------------------------------------------------------------


def test_ica_finds_independent_sources(generator: torch.Generator) -> None:
    sources = -torch.rand(4000, 3, generator=generator, dtype=torch.float64).log() * (
        torch.rand(4000, 3, generator=generator) < 0.3
    )
    mixing = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    unmix, mix = local.fast_ica(sources @ mixing, 3, generator)
    found = (sources @ mixing - (sources @ mixing).mean(0)) @ unmix
    correlation = np.abs(np.corrcoef(found.T, sources.T)[:3, 3:])
    assert (correlation.max(0) > 0.97).all()
    torch.testing.assert_close(found @ mix, sources @ mixing - (sources @ mixing).mean(0))


def test_other_pools_are_another_features_tokens(judge_: Judge) -> None:
    pools = controls.other_pools(judge_.work)
    assert len(pools.x_on) >= controls.LEAST_OTHER and bool((pools.a_on > 0).all())
    y = torch.nn.functional.normalize(pools.core(), dim=0)
    cosine = judge_.work.sae.W_dec.detach() @ y
    other = int(cosine.argmax())
    assert other != judge_.work.feature and float(cosine[other]) > 0.8


def test_split_count_by_hand() -> None:
    """One feature that is the context: 1. Two that share it: 2, as F1 rises from 2/3 to 1."""
    member = np.arange(400) % 4 == 0
    half = member & (np.arange(400) % 8 == 0)
    one = csc_array(np.column_stack([member, np.zeros(400)]).astype(float))
    two = csc_array(np.column_stack([half, member & ~half]).astype(float))
    labels = {"train": member, "select": member}
    assert split_count({"train": one, "select": one}, labels) == (1, 1.0)
    assert split_count({"train": two, "select": two}, labels) == (2, 1.0)
    assert split_count({"train": one[:, 1:], "select": one[:, 1:]}, labels) == (0, 0.0)
    assert f1(np.array([True, True, False]), np.array([True, False, True])) == 0.5


def test_match_by_hand() -> None:
    truth = np.zeros((10, 2), dtype=bool)
    truth[:4, 0] = truth[4:8, 1] = True
    fires = np.zeros((10, 3), dtype=bool)
    fires[:4, 0] = True  # the first child: F1 1
    fires[4:6, 1] = True  # half of the second: F1 2 * 2 / (2 + 4)
    fires[8:, 2] = True  # no child
    none = truth[:, :0]
    found = match(fires, truth, none)
    assert found.f1 == pytest.approx((1 + 2 / 3) / 2)
    assert found.found == 0.5 and found.false == pytest.approx(1 / 3)
    nothing = match(fires, none, none)
    assert np.isnan(nothing.f1) and nothing.false == 1.0
    beside = match(fires, truth, fires[:, 2:])  # a background feature is no false child, nor a child found
    assert (beside.f1, beside.found, beside.false) == (found.f1, found.found, 0.0)


def test_truth_is_in_the_activations() -> None:
    acts = known_activations(WORLD)
    assert isinstance(acts, KnownActivations)
    rows = np.arange(acts.stores["test"].n_tokens)
    truth = acts.truth("test", rows)
    x = acts.stores["test"].rows(rows)
    on = acts.stores["test"].token_ids == 2
    for c in range(3):
        read = (x @ acts._known.v[c]).numpy()
        assert truth[:, c].any() and not truth[~on, c].any()
        assert read[truth[:, c]].mean() > 1.5 + read[on & ~truth[:, c]].mean()
    assert known_activations(World("none", alpha=0.0, contexts=(3, 3, 3))).truth("test", rows[:5]).shape == (5, 0)


# --- a stranger's method ------------------------------------------------------------------------------------------------------

STRANGER = '''
"""Principal axes."""
import torch
from saelib.split.children import Dictionary

def axes(task):
    """Principal axes of what the rest leaves on P."""
    y, x = task.targets.y_on, task.targets.x_on
    E = torch.linalg.svd(y - y.mean(0), full_matrices=False).Vh[: task.K]
    return Dictionary(E.T.contiguous(), -(x.mean(0) @ E.T), E.contiguous())

def wrong(task):
    return Dictionary(torch.zeros(2, 2), torch.zeros(2), torch.zeros(2, 2))

def nothing(task):
    return None
'''


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(STRANGER)
    return path


def test_a_function_of_a_file_is_a_method(stranger: Path, judge_: Judge) -> None:
    found = get_method(f"{stranger}:axes")
    assert found.kind == "local" and found.about == "Principal axes of what the rest leaves on P."
    assert np.isfinite(float(run(judge_, f"{stranger}:axes").row["S_2"]))
    before = found.version
    stranger.write_text(STRANGER + "\n# changed\n")
    assert found.version != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:missing", "must have the function; got missing"),
        ("no.py:axes", "a method's file must be there"),
        ("no.module:axes", "method must be in a module that can be imported"),
        ("k-mean", "did you mean 'k-means'?"),
        ("sae:nowhere", "an SAE must be a folder that holds sae_weights.safetensors"),
    ],
)
def test_what_is_no_method_is_refused(name: str, message: str, stranger: Path) -> None:
    with pytest.raises(UserError, match=r".*") as error:
        get_method(name.replace("mine.py", str(stranger)))
    assert message in str(error.value)


def test_what_a_method_gives_is_looked_at(stranger: Path, judge_: Judge) -> None:
    with pytest.raises(UserError, match="a dictionary must be W"):
        run(judge_, f"{stranger}:wrong")
    with pytest.raises(UserError, match="a method must give a Dictionary, an SAE or activations on P"):
        run(judge_, f"{stranger}:nothing")
    bad = Method(
        "bad", "local", "", lambda t: Dictionary(*(torch.full(s, torch.nan) for s in ((24, 2), (2,), (2, 24))))
    )
    with pytest.raises(UserError, match="what bad gives must be finite"):
        make(bad, task(judge_))


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(methods._REGISTRY)
    yield
    methods._REGISTRY.clear()
    methods._REGISTRY.update(before)


@pytest.mark.usefixtures("registry")
def test_a_registered_method_has_a_name_of_its_own() -> None:
    method("mine", "local", "a test")(lambda task: task.targets)
    assert get_method("mine").source is not None and "mine" not in method_names()
    with pytest.raises(UserError, match="a method's name must be free; got 'k-means'"):
        method("k-means", "local", "")(lambda task: task.targets)


@pytest.mark.slow
def test_split_by_writes_its_tables(judge_: Judge, tmp_path: Path) -> None:
    work = judge_.work
    folder = run(judge_, "all-data").sae.save(tmp_path / "sae")  # type: ignore[arg-type]
    for name in ("quantiles", f"sae:{folder}"):
        found = split_by(work.original, work.feature, known_activations(WORLD), name, CONFIG)
        out = found.save(tmp_path / "out")
        record = json.loads((out / "split.json").read_text())
        assert record["rows"][0]["name"] == name and record["rows"][1]["name"] == "rest alone"
        assert record["separation"]["S_2"][0] == pytest.approx(found.judged.separation.S[2].value)
        named = {row["context"] for row in record["children"]}
        assert named <= set(found.contexts["context"]) and len(named) == (0 if name == "quantiles" else 3)
        tables = {"split.json", "rows.csv", "contexts.csv", "children.csv"}
        assert {p.name for p in out.iterdir()} == tables | (set() if name == "quantiles" else {"sae"})
        assert "rest alone" in found.text()


@pytest.mark.slow
def test_children_that_come_back_are_the_true_ones_and_each_stands_there_once(judge_: Judge) -> None:
    acts, rows = known_activations(WORLD), judge_.work.tokens.on["test"].rows
    truth, background = acts.truth("test", rows), acts.background("test", rows)
    once, back = (match(run(judge_, name).fires, truth, background) for name in ("children-16", "again"))
    assert back.false < 0.2 < once.false, (once, back)
    assert back.found >= once.found
    fires = run(judge_, "again").fires
    assert (iou(fires, fires) - np.eye(fires.shape[1])).max() < 0.7


@pytest.mark.slow
def test_nothing_comes_back_where_there_is_nothing(session_cache: Path) -> None:
    world = World("nothing", d_in=24, n_background=40, contexts=(200, 120, 120), alpha=0.0, seed=4)
    acts, (sae, parent) = known_activations(world), known_sae(world)
    work = Work.of(acts, gather(acts, sae, parent), sae, CONFIG.contexts, CONFIG.least)
    with pytest.raises(UserError, match="the best comes back with an IoU of 0"):
        get_method("again").make(Task(acts, work, 16, 0, CONFIG.children, WIDE, Meter()))


@pytest.mark.slow
def test_an_encoder_is_refitted_to_where_it_fires(judge_: Judge) -> None:
    pools = judge_.work.targets
    found = make(get_method("children-16"), task(judge_))
    assert isinstance(found, Dictionary)
    assert found.W.shape[1] == 16  # its own K, though the task asks for 8
    wanted = own_firings(found, pools, SHARE)
    c = found.encode(pools.x_on)
    live = (c > 0).sum(0) > 20
    strong = torch.stack([col[col > 0].quantile(0.9) for col in c.T[live]])
    assert torch.equal(wanted[:, live], c[:, live] > SHARE * strong)
    W, b = refit_encoders(pools, wanted, RIDGE)
    logit = pools.x_on @ W + b - START
    assert ((logit[:, live] > 0) == wanted[:, live]).float().mean() > 0.9
    assert torch.equal(refit_encoders(pools, wanted, RIDGE)[0], W)


def two_words(n: int = 2000) -> tuple[Pools, TokenSet]:
    """A tenth of P stands after token 7, which x[:, 0] tells; half of these have x[:, 1] too, and so have others."""
    draw = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(n, 6, generator=draw)
    after = torch.arange(n) % 10 == 0
    x[after, 0] += 4
    x[torch.arange(n) % 20 < 5, 1] += 4
    x_off = 0.3 * torch.randn(n, 6, generator=draw)
    ones, none = torch.ones(n), np.zeros(n, dtype=np.int64)
    pools = Pools(x, x, ones, x_off[:50], x_off[:50], ones[:50], x_off)
    previous = np.where(after.numpy(), 7, 100 + np.arange(n) % 9)
    return pools, TokenSet(np.arange(n), x, ones.numpy(), none, previous, none, none)


def test_a_child_with_a_name_fires_on_all_that_the_name_means() -> None:
    pools, on = two_words()
    on_half, unnamed = [1.0, 1, 0, 0, 0, 0], [0.0, 0, 1, 0, 0, 0]
    both = Dictionary(torch.tensor([on_half, unnamed]).T.contiguous(), torch.tensor([-6.0, -0.2]), torch.eye(6)[:2])
    after = torch.from_numpy(on.previous == 7)
    before = (both.encode(pools.x_on) > 0)[:, 0]
    assert before[after].float().mean() < 0.6
    found = to_names(both, pools, on)
    fires = found.encode(pools.x_on) > START
    assert fires[after, 0].float().mean() > 0.99 and fires[~after, 0].float().mean() < 0.01
    assert (found.encode(pools.x_off)[:, 0] > START).float().mean() < 0.01
    assert torch.equal(found.W[:, 1], both.W[:, 1]) and torch.equal(found.E, both.E)  # no name: as it was
    twins = Dictionary(both.W[:, [0, 0]], both.b[[0, 0]], both.E[[0, 0]])
    assert torch.equal(to_names(twins, pools, on).W[:, 1], both.W[:, 0])  # one name, one refit


@pytest.mark.slow
def test_the_ceiling_is_above_children_and_is_refused_where_nothing_is_judged(
    judge_: Judge, session_cache: Path
) -> None:
    ceiling, ours, to_words = (
        run(judge_, name).separation.S[1].value for name in ("supervised", "children-16", "named")
    )
    assert ceiling > 0.9 > ours and ceiling > to_words > ours
    world = World("nothing", d_in=24, n_background=40, contexts=(200, 120, 120), alpha=0.0, seed=4)
    acts, (sae, parent) = known_activations(world), known_sae(world)
    work = Work.of(acts, gather(acts, sae, parent), sae, CONFIG.contexts, CONFIG.least)
    with pytest.raises(UserError, match="at least one context must be told apart by a probe"):
        get_method("supervised").make(Task(acts, work, 16, 0, CONFIG.children, WIDE, Meter()))
