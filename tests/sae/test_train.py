import dataclasses
import json
import shutil

import pytest
import torch

import saelib.sae.step as step_module
import saelib.sae.train as train_module
from saelib.base.errors import UserError
from saelib.sae.definition import PlainTrainer
from saelib.sae.initial import init_from_narrow, init_random, unit_rows
from saelib.sae.sae import PARAMETERS, SAEConfig
from saelib.sae.train import Hooks, train
from saelib.sae.train_config import TrainConfig

D_IN, D_SAE, BATCH = 12, 32, 64


class Superposition:
    """Sparse sums of more unit directions than there are dimensions; a pure function of (seed, step)."""

    def __init__(self, n_features=20, d_in=D_IN, batch_size=BATCH, share=0.1, seed=0):
        self.d_in, self.batch_size, self.share, self.seed = d_in, batch_size, share, seed
        self.directions = unit_rows(torch.randn(n_features, d_in, generator=torch.Generator().manual_seed(seed)))
        self.asked = []

    def batch(self, step, out=None):
        self.asked.append(step)
        generator = torch.Generator().manual_seed(1000 * self.seed + step)
        active = torch.rand(self.batch_size, len(self.directions), generator=generator) < self.share
        size = 0.5 + torch.rand(self.batch_size, len(self.directions), generator=generator)
        return (active * size) @ self.directions


def sae_config(d_sae=D_SAE, d_in=D_IN):
    return SAEConfig(d_in, d_sae, "blocks.0.hook_mlp_out", "tiny", True)


def initial(kind="random", seed=0):
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        return init_random(sae_config(), generator)
    narrow = init_random(sae_config(8), generator)
    with torch.no_grad():
        narrow.b_enc.uniform_(-0.1, 0.1, generator=generator)
        narrow.b_dec.uniform_(-0.1, 0.1, generator=generator)
        narrow.W_dec.mul_(1.003)
    return init_from_narrow(narrow, sae_config(), kind == "narrow, normalised", generator)


def train_config(**changes):
    known = {"l1_coeff": 2e-3, "n_steps": 30, "lr": 1e-3, "batch_size": BATCH, "log_every": 1, "checkpoint_every": 1000}
    return TrainConfig(**(known | changes))


def same_bits(first, second):
    for name in PARAMETERS:
        assert torch.equal(getattr(first.sae, name), getattr(second.sae, name)), name
    columns = [c for c in first.history.columns if c != "seconds"]
    assert first.history[columns].equals(second.history[columns])


# The study's trainer


@pytest.mark.slow
@pytest.mark.parametrize("route", ["dense", "sparse"])
@pytest.mark.parametrize("zero_parent", [None, 3])
@pytest.mark.parametrize("init", ["random", "narrow, normalised", "narrow, as it is"])
def test_fifty_steps_of_the_reference(init, zero_parent, route, tmp_path, monkeypatch):
    """Losses to 1e-5 relative; every parameter to 2e-6, where fifty steps of Adam have moved them by up to 5e-2."""
    monkeypatch.setattr(train_module, "choose_route", lambda share, device: route)
    sae, batches = initial(init), Superposition()
    reference = PlainTrainer({name: getattr(sae, name) for name in PARAMETERS}, 2e-3, lr=1e-3, zero_parent=zero_parent)
    losses = [reference.step(batches.batch(step)) for step in range(50)]
    result = train(sae, batches, train_config(n_steps=50, zero_parent=zero_parent), workdir=tmp_path)
    assert losses[-1] < losses[0]
    assert result.history.loss.tolist() == pytest.approx(losses, rel=1e-5)
    for name in PARAMETERS:
        ours, theirs = getattr(result.sae, name), reference.params[name]
        assert (theirs - getattr(sae, name)).abs().max() > 1e-3, f"{name} did not move: nothing was tested"
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("route", ["dense", "sparse"])
def test_the_decoder_norm_objective_is_plain_adam_on_it(route, tmp_path, monkeypatch):
    """No row is normalised: the objective itself keeps them from growing."""
    monkeypatch.setattr(train_module, "choose_route", lambda share, device: route)
    sae, batches = initial("narrow, as it is"), Superposition()
    plain = {name: getattr(sae, name).detach().clone().requires_grad_(True) for name in PARAMETERS}
    adam = torch.optim.Adam(plain.values(), lr=1e-3, betas=(0.9, 0.99))
    losses = []
    for step in range(30):
        x = batches.batch(step)
        acts = torch.relu((x - plain["b_dec"]) @ plain["W_enc"] + plain["b_enc"])
        error = acts @ plain["W_dec"] + plain["b_dec"] - x
        loss = error.square().sum(-1).mean() + 0.5 * (acts * plain["W_dec"].norm(dim=1)).sum(-1).mean()
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    result = train(sae, batches, train_config(l1_coeff=0.5, objective="decoder_norm"), workdir=tmp_path)
    assert result.history.loss.tolist() == pytest.approx(losses, rel=1e-5)
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(result.sae, name), plain[name], rtol=0, atol=2e-6)
    assert (result.sae.W_dec.norm(dim=1) - 1).abs().max() > 0.005


def test_a_zeroed_parent_keeps_its_encoder(tmp_path):
    sae = initial()
    result = train(sae, Superposition(), train_config(zero_parent=3), workdir=tmp_path)
    moved = (result.sae.W_enc - sae.W_enc).abs().amax(0)
    assert moved[3] == 0
    assert result.sae.b_enc[3] == 0
    assert (moved > 0).sum() > D_SAE // 2


@pytest.mark.slow
def test_known_features_are_recovered_and_an_untrained_sae_does_not_have_them(tmp_path):
    batches = Superposition(n_features=40, d_in=24, batch_size=256, share=0.04)
    sae = init_random(sae_config(d_sae=80, d_in=24), torch.Generator().manual_seed(0))

    def recovered(candidate):
        cosine = batches.directions @ unit_rows(candidate.W_dec.detach()).T
        return (cosine.max(dim=1).values > 0.9).float().mean().item()

    cfg = train_config(l1_coeff=0.1 / 256, n_steps=500, lr=1e-2, batch_size=256, log_every=100)
    result = train(sae, batches, cfg, workdir=tmp_path)
    assert recovered(sae) < 0.1
    assert recovered(result.sae) > 0.9


# What comes back


def test_history_and_callbacks(tmp_path):
    sae, batches, seen = initial(), Superposition(), []
    cfg = train_config(n_steps=25, log_every=10)
    result = train(
        sae,
        batches,
        cfg,
        workdir=tmp_path,
        hooks=Hooks(lambda at: {"norm": at.W_dec.norm().item()}, lambda done, total: seen.append((done, total))),
    )
    history = result.history
    assert history.columns.tolist() == [
        *("step", "tokens", "loss", "l2", "l1", "l0", "dead_share", "seconds"),
        "norm",
    ]
    assert history.step.tolist() == [0, 10, 20, 24]
    assert history.tokens.tolist() == [0, 640, 1280, 1536]
    x_hat, acts = sae(batches.batch(0))
    l2 = ((x_hat - batches.batch(0)) ** 2).sum(-1).mean().item()
    first = history.iloc[0]
    assert first.l2 == pytest.approx(l2, rel=1e-5)
    assert first.l1 == pytest.approx(2e-3 * acts.sum().item(), rel=1e-5)
    assert first.loss == first.l2 + first.l1
    assert first.l0 == pytest.approx((acts > 0).float().sum(1).mean().item())
    assert first["norm"] == pytest.approx(D_SAE**0.5)
    assert history.seconds.is_monotonic_increasing
    assert seen == [(n, 25) for n in range(1, 26)]
    assert result.n_tokens == 25 * BATCH


def test_the_sae_passed_in_is_left_alone(tmp_path):
    sae = initial()
    before = {name: getattr(sae, name).detach().clone() for name in PARAMETERS}
    result = train(sae, Superposition(), train_config(), workdir=tmp_path)
    assert all(torch.equal(getattr(sae, name), before[name]) for name in PARAMETERS)
    assert all(p.requires_grad and p.is_contiguous() for p in result.sae.parameters())
    assert result.sae.cfg == sae.cfg


def test_dead_share_counts_features_silent_since_the_row_before(tmp_path):
    sae = initial()
    with torch.no_grad():
        sae.b_enc[:8] = -100
    result = train(sae, Superposition(), train_config(l1_coeff=0.0, log_every=10), workdir=tmp_path)
    assert result.history.dead_share.tolist() == [8 / D_SAE] * 4


# Silent features


def test_silent_features_are_reinitialised(tmp_path):
    sae = initial()
    with torch.no_grad():
        sae.b_enc[[2, 5]] = -100
        sae.W_enc[:, [2, 5]] = 5.0
    cfg = train_config(n_steps=20, reinit_every=10, l1_coeff=0.0, lr=0.0)
    after = train(sae, Superposition(), cfg, workdir=tmp_path).sae
    assert after.b_enc[[2, 5]].tolist() == [0, 0]
    assert after.W_enc[:, [2, 5]].abs().max() <= (6 / D_SAE) ** 0.5
    torch.testing.assert_close(after.W_dec[[2, 5]].norm(dim=1), torch.ones(2))
    assert not torch.equal(after.W_dec[[2, 5]], sae.W_dec[[2, 5]])
    alive = [i for i in range(D_SAE) if i not in (2, 5)]  # the learning rate is zero, so nothing else may move
    assert torch.equal(after.W_enc[:, alive], sae.W_enc[:, alive])
    torch.testing.assert_close(after.W_dec[alive], sae.W_dec[alive])


def test_reinitialising_forgets_the_moments():
    sae = initial()
    cfg = train_config(reinit_threshold=2.0, reinit_every=10)  # every feature counts as silent
    state = train_module.TrainState(sae, cfg)
    x = Superposition().batch(0)
    result = train_module.loss_and_grads(state.params, x, cfg.l1_coeff)
    state.count(result, BATCH)
    state.update(result.grads)
    assert state.adam.state[state.leaves["W_dec"]]["exp_avg"].any()
    state.resample_dead(cfg)
    for name in ("W_enc", "b_enc", "W_dec"):
        moments = state.adam.state[state.leaves[name]]
        assert not moments["exp_avg"].any()
        assert not moments["exp_avg_sq"].any()
    assert state.adam.state[state.leaves["b_dec"]]["exp_avg"].any()
    assert state.tokens_since_reinit == 0
    assert not state.fired_since_reinit.any()


def test_a_zeroed_parent_is_not_silent(tmp_path):
    sae = initial()
    cfg = train_config(n_steps=20, reinit_every=10, zero_parent=3)
    after = train(sae, Superposition(), cfg, workdir=tmp_path).sae
    assert torch.equal(after.W_enc[:, 3], sae.W_enc[:, 3])


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({"reinit_every": 10}, [10, 20]),  # not at 30, when nothing is left, and not at 25
        ({"reinit_every": 10, "reinit_guard": 11}, [10]),
        ({"reinit_every": 10, "reinit_guard": 0}, [10, 20]),
        ({"reinit_every": 8, "reinit_guard": 0}, [8, 16, 24]),
        ({"reinit_every": 0}, []),
    ],
)
def test_when_reinitialisation_is_due(changes, due):
    cfg = train_config(n_steps=30, **changes)
    assert [step for step in range(1, 31) if cfg.reinit_due(step)] == due


# Killed and resumed


class Killed(Exception):
    pass


def run(workdir, kill_at=None, batches=None, init_seed=0, rare=False, **changes):
    """A run that exercises everything a checkpoint must hold: both routes, re-initialisation, a probe."""
    sae = initial(seed=init_seed)
    with torch.no_grad():
        sae.b_enc.fill_(-0.2)
        sae.b_enc[:6] = -100  # silent: drawn afresh at steps 8, 16 and 24
        if rare:
            sae.b_enc[6:] = -torch.linspace(0.2, 1.5, D_SAE - 6)

    def on_step(done, total):
        if done == kill_at:
            raise Killed

    cfg = train_config(
        **(
            {
                "reinit_every": 8,
                "reinit_guard": 0,
                "reinit_threshold": 0.1,
                "l1_coeff": 4e-3,
                "lr": 3e-3,
                "checkpoint_every": 5,
            }
            | changes
        )
    )
    probe = lambda at: {"norm": at.W_enc.norm().item()}  # noqa: E731
    return train(sae, batches or Superposition(), cfg, workdir=workdir, hooks=Hooks(probe, on_step), name="run 7")


@pytest.fixture
def killed(tmp_path):
    """A folder with the checkpoints of a run killed after step 17."""
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=17)
    return tmp_path / "killed"


def test_resumed_run_has_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(step_module, "SPARSE_BELOW", 0.29)  # in the middle of this run's activity, so that both occur
    routes = []
    choose = train_module.choose_route
    monkeypatch.setattr(train_module, "choose_route", lambda *a: routes.append(choose(*a)) or routes[-1])
    straight = run(tmp_path / "straight")
    assert set(routes) == {"dense", "sparse"}
    planned = routes[15:]
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=17)
    routes.clear()
    batches = Superposition()
    resumed = run(tmp_path / "killed", batches=batches)
    assert batches.asked == list(range(15, 30))
    assert routes == planned
    assert planned[0] == "sparse", "a forgotten activity would go unseen"
    same_bits(straight, resumed)


@pytest.mark.parametrize("kill_at", [1, 8, 20, 29])
def test_resumed_from_anywhere(tmp_path, kill_at):
    straight = run(tmp_path / "straight")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=kill_at)
    with pytest.raises(Killed):  # and once more
        run(tmp_path / "killed", kill_at=30)
    same_bits(straight, run(tmp_path / "killed"))


def test_a_finished_run_is_not_done_again(tmp_path):
    first = run(tmp_path)
    batches = Superposition()
    again = run(tmp_path, batches=batches)
    assert batches.asked == []
    same_bits(first, again)
    assert again.seconds == pytest.approx(first.seconds, rel=0.5)


def test_two_checkpoints_are_kept_and_nothing_else(killed):
    assert sorted(p.name for p in killed.iterdir()) == [
        f"step-{step:09d}.{kind}" for step in (10, 15) for kind in ("json", "safetensors")
    ]


def newest(folder, suffix):
    return max(folder.glob(f"step-*.{suffix}"))


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = {
    "tensors cut short": lambda f: newest(f, "safetensors").write_bytes(newest(f, "safetensors").read_bytes()[:1000]),
    "tensors flipped": lambda f: flip_a_byte(newest(f, "safetensors")),
    "tensors gone": lambda f: newest(f, "safetensors").unlink(),
    "json cut short": lambda f: newest(f, "json").write_text(newest(f, "json").read_text()[:100]),
    "json empty": lambda f: newest(f, "json").write_text(""),
    "json not an object": lambda f: newest(f, "json").write_text("[3]"),
    "json not text": lambda f: newest(f, "json").write_bytes(b"\xff\xfe\x00"),
    "json changed": lambda f: newest(f, "json").write_text(
        newest(f, "json").read_text().replace('"step": 15', '"step": 16')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_older(tmp_path, killed, damage):
    DAMAGES[damage](killed)
    batches = Superposition()
    with pytest.warns(UserWarning, match=r"run 7: damaged checkpoint .*step-000000015.*older step-000000010") as caught:
        resumed = run(killed, batches=batches)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert batches.asked[0] == 10
    same_bits(run(tmp_path / "straight"), resumed)


def test_both_damaged_is_an_error_that_names_them(killed):
    for path in killed.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"run 7: .*got damage in .*15.safetensors and .*10.safetensors: delete .*killed"
    ):
        run(killed)


def test_tensors_without_their_json_are_no_checkpoint(tmp_path, killed):
    """A kill between the two writes leaves this behind."""
    newest(killed, "json").unlink()
    batches = Superposition()
    resumed = run(killed, batches=batches)
    assert batches.asked[0] == 10
    same_bits(run(tmp_path / "straight"), resumed)
    assert len(list(killed.iterdir())) == 4


@pytest.mark.parametrize(
    "changes", [{"lr": 1e-4}, {"l1_coeff": 1e-3}, {"zero_parent": 1}, {"seed": 1}, {"n_steps": 40}]
)
def test_a_checkpoint_of_another_configuration_is_refused(killed, changes):
    with pytest.raises(
        UserError, match=r"run 7: a checkpoint must belong to this run \(\w{16}\); got \w{16} in .*json"
    ):
        run(killed, **changes)


def test_a_checkpoint_of_other_weights_or_data_is_refused(killed):
    with pytest.raises(UserError, match="must belong to this run"):
        run(killed, init_seed=9)
    batches = Superposition()
    batches.key = "other text"
    with pytest.raises(UserError, match="must belong to this run"):
        run(killed, batches=batches)


def test_how_often_checkpoints_are_written_changes_nothing(tmp_path, killed):
    same_bits(run(tmp_path / "straight", checkpoint_every=1000), run(killed, checkpoint_every=3))


def test_checkpoints_are_plain_json_and_safetensors(killed):
    content = json.loads(newest(killed, "json").read_text())
    assert content["scalars"]["step"] == 15
    assert content["scalars"]["rows"][0]["step"] == 0


# Everything a step changes is in a checkpoint


ROUTES_ALTERNATE = 0.33  # in the middle of the activity of the run below
UNALIGNED = {"log_every": 13, "reinit_every": 9, "reinit_threshold": 0.003}
"""Killed after step 26, this run goes on from step 25: between rows of its history and between re-initialisations."""


def unaligned(workdir, **more):
    """A run in which some features fire once in many steps."""
    return run(workdir, **UNALIGNED, rare=True, **more)


@pytest.fixture
def routes_alternate(monkeypatch):
    monkeypatch.setattr(step_module, "SPARSE_BELOW", ROUTES_ALTERNATE)


def as_plain(value):
    """A state's attribute as something that compares by `==`, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, torch.optim.Optimizer):
        return as_plain(value.state_dict())
    if isinstance(value, torch.nn.Module):
        return as_plain(dict(value.named_parameters()))
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_plain(item) for item in value]
    assert isinstance(value, int | float | str | bool | torch.device | None), f"how to compare a {type(value)}?"
    return value


def test_a_restored_state_is_the_saved_one_in_every_attribute(tmp_path, monkeypatch, routes_alternate):
    """Also in those that somebody adds later: an attribute that a checkpoint forgets shows here by its name."""
    states = []

    class Kept(train_module.TrainState):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            states.append(self)

    monkeypatch.setattr(train_module, "TrainState", Kept)
    with pytest.raises(Killed):
        unaligned(tmp_path, kill_at=25)
    saved = {name: as_plain(value) for name, value in vars(states[0]).items()}
    fresh = {name: as_plain(value) for name, value in vars(Kept(initial(), train_config())).items()}
    states.clear()
    restore = Kept.restore

    def stop(self, found):
        restore(self, found)
        raise Killed

    monkeypatch.setattr(Kept, "restore", stop)
    with pytest.raises(Killed):
        unaligned(tmp_path)
    for name, value in vars(states[0]).items():
        assert as_plain(value) == saved[name], name
    constant = {"device"}
    assert {name for name in saved if saved[name] == fresh[name]} == constant, "these were not put to the test"


STATE = train_module.TrainState(initial(), train_config())


@pytest.fixture(scope="module")
def straight_and_killed(tmp_path_factory):
    """The result of an undisturbed run, and the folder of the same run killed after step 26."""
    folder = tmp_path_factory.mktemp("unaligned")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(step_module, "SPARSE_BELOW", ROUTES_ALTERNATE)
        with pytest.raises(Killed):
            unaligned(folder / "killed", kill_at=26)
        return unaligned(folder / "straight"), folder / "killed"


@pytest.mark.parametrize("forgotten", [None, *STATE.tensors(), *STATE.scalars()])
def test_a_forgotten_field_is_not_forgiven(tmp_path, monkeypatch, routes_alternate, straight_and_killed, forgotten):
    """Each field changes what a resumed run makes: so the tests of equal bits see every one of them."""
    straight, killed = straight_and_killed
    shutil.copytree(killed, tmp_path / "killed")
    restore = train_module.TrainState.restore

    def forgetful(self, found):
        tensors = {name: value.clone() for name, value in self.tensors().items() if name == forgotten}
        scalars = {name: value for name, value in self.scalars().items() if name == forgotten}
        restore(self, found._replace(tensors=found.tensors | tensors, scalars=found.scalars | scalars))

    monkeypatch.setattr(train_module.TrainState, "restore", forgetful)
    if forgotten is None:
        same_bits(straight, unaligned(tmp_path / "killed"))
    elif forgotten == "seconds":
        assert not unaligned(tmp_path / "killed").history.seconds.is_monotonic_increasing
    else:
        with pytest.raises((AssertionError, UserError)):  # a run whose moments are halved may even diverge
            same_bits(straight, unaligned(tmp_path / "killed"))


def test_a_checkpoint_that_lacks_a_field_is_named(tmp_path, monkeypatch):
    def without(self):
        tensors = complete(self)
        del tensors["fired_since_log"]
        return tensors

    complete = train_module.TrainState.tensors
    with monkeypatch.context() as patched:
        patched.setattr(train_module.TrainState, "tensors", without)
        with pytest.raises(Killed):
            run(tmp_path, kill_at=17)
    with pytest.raises(
        UserError, match=r"one checkpoint must be intact; got .*\(of another version, by its fired_since_log\)"
    ):
        run(tmp_path)


def test_two_trainings_in_one_folder_take_turns(tmp_path):
    """The second waits for the first and then has nothing left to do."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: run(tmp_path / "shared"), range(2))
    same_bits(first, second)
    assert len(list((tmp_path / "shared").iterdir())) == 4


# What goes wrong


@pytest.mark.parametrize("route", ["dense", "sparse"])
def test_a_nan_batch_stops_the_run_with_the_last_good_checkpoint(tmp_path, route, monkeypatch):
    monkeypatch.setattr(train_module, "choose_route", lambda share, device: route)
    batches = Superposition()
    good = batches.batch
    batches.batch = lambda step, out=None: good(step) * (float("nan") if step == 13 else 1)
    message = (
        r"loss must stay finite; got nan at step 13 \(first bad tensor: the batch; .*step-000000010.json\): lower lr"
    )
    with pytest.raises(UserError, match=message):
        train(initial(), batches, train_config(checkpoint_every=5), workdir=tmp_path)


def test_overflowing_weights_are_named_and_never_saved(tmp_path):
    with pytest.raises(UserError, match=r"SAE: loss must stay finite; got .* last good checkpoint: (none|.*json)"):
        train(initial(), Superposition(), train_config(lr=1e36), workdir=tmp_path)


def test_the_step_is_named_though_it_is_found_later(tmp_path):
    """The loss is looked at where the history gets a row; the step and the batch that broke it are told all the same."""
    batches = Superposition()
    good = batches.batch
    batches.batch = lambda step, out=None: good(step) * (float("inf") if step == 13 else 1)
    message = (
        r"loss must stay finite; got nan at step 13 \(first bad tensor: the batch; last good checkpoint: none yet\)"
    )
    with pytest.raises(UserError, match=message):
        train(initial(), batches, train_config(log_every=9), workdir=tmp_path)
    assert batches.asked[-2:] == [18, 13], "found at the row of step 18"


def test_a_state_that_is_not_finite_is_never_saved(tmp_path, monkeypatch):
    """Found at a checkpoint even where no loss has shown it yet, and named by its tensor."""
    update = train_module.TrainState.update

    def spoil(self, grads):
        update(self, grads)
        if self.step == 9:
            self.adam.state[self.leaves["b_enc"]]["exp_avg_sq"][3] = float("inf")

    monkeypatch.setattr(train_module.TrainState, "update", spoil)
    message = r"got a finite one at step 10 \(first bad tensor: adam.b_enc.exp_avg_sq; .*step-000000005.json\)"
    with pytest.raises(UserError, match=message):
        train(initial(), Superposition(), train_config(checkpoint_every=5, log_every=100), workdir=tmp_path)
    assert max(tmp_path.glob("*.json")).name == "step-000000005.json"


def test_a_run_that_diverges_stops(tmp_path):
    message = r"SAE: loss must not run away; got \S+ at step \d+, where \S+ is .*last good checkpoint: .*: lower lr"
    with pytest.raises(UserError, match=message):
        train(initial(), Superposition(), train_config(lr=30.0), workdir=tmp_path)


def test_a_high_loss_at_the_start_is_no_divergence(tmp_path):
    sae = initial()
    with torch.no_grad():
        sae.b_dec.fill_(1e3)
    result = train(sae, Superposition(), train_config(), workdir=tmp_path)
    assert result.history.loss.iloc[0] > 1e4 * Superposition().batch(0).square().sum(1).mean()


def test_all_features_dead_stops(tmp_path):
    sae = initial()
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    message = r"SAE: some feature must fire; got all of them silent at step 0 \(tensor: feature_acts; .*none yet\)"
    with pytest.raises(UserError, match=message):
        train(sae, Superposition(), train_config(l1_coeff=0.0), workdir=tmp_path)


def test_batches_must_fit(tmp_path):
    with pytest.raises(UserError, match="activations must have the SAE's d_in=12; got 13"):
        train(initial(), Superposition(d_in=13), train_config(), workdir=tmp_path)
    with pytest.raises(UserError, match="batches must hold batch_size=64 tokens; got 32"):
        train(initial(), Superposition(batch_size=32), train_config(), workdir=tmp_path)
    with pytest.raises(UserError, match=r"feature must be in \[0, d_sae=32\); got 32"):
        train(initial(), Superposition(), train_config(zero_parent=32), workdir=tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"n_steps": 0},
        {"lr": float("nan")},
        {"l1_coeff": -1.0},
        {"beta2": 1.0},
        {"log_every": 0},
        {"reinit_every": -1},
        {"seed": -1},
        {"seed": 2**63},
    ],
)
def test_config_is_validated(changes):
    name = next(iter(changes))
    with pytest.raises(UserError, match=f"{name} must be"):
        train_config(**changes)


def test_config_is_frozen_and_rejects_unknown_keys():
    with pytest.raises(dataclasses.FrozenInstanceError):
        train_config().lr = 1.0
    with pytest.raises(TypeError, match="learning_rate"):
        train_config(learning_rate=1.0)
