"""The benchmarks run and print what they promise; what they measure is for a quiet machine to say."""

import importlib.util
import json
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="the roofline is that of the compiled step")


def run(root, *arguments):
    done = subprocess.run(
        [sys.executable, root / "benchmarks" / arguments[0], *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_train_step_prints_one_json_object(root):
    shape = ("--batch", "96", "--d-in", "16", "--d-sae", "200", "--active", "8")
    done = run(root, "train_step.py", "--json", "--rounds", "3", "--threads", "1", *shape)
    found = json.loads(done.stdout)
    against_saelens = {"speedup_vs_saelens_fp32", "speedup_vs_saelens_autocast"}
    assert found.keys() == {"speedup_vs_reference", "speedup_vs_reference_init", "roofline_share"} | against_saelens
    missing = importlib.util.find_spec("sae_lens") is None
    assert ("pip install 'saelib[peers]'" in done.stderr) is missing
    for name, value in found.items():
        if missing and name in against_saelens:
            assert value is None
        else:
            assert 0 < value["p25"] <= value["median"] <= value["p75"]


def test_harvest_prints_one_json_object(root):
    found = json.loads(run(root, "harvest.py", "--json", "--rounds", "3", "--contexts", "2").stdout)
    assert found.keys() == {"speedup_vs_transformer_lens", "max_rel_error"}
    speedup = found["speedup_vs_transformer_lens"]
    assert 0 < speedup["p25"] <= speedup["median"] <= speedup["p75"] and 0 <= found["max_rel_error"] <= 1e-5


def test_growth_prints_curves_with_exponents(root, monkeypatch, tmp_path):
    monkeypatch.setenv("SAELIB_CACHE", str(tmp_path))
    found = json.loads(run(root, "growth.py", "--json", "--quick").stdout)
    curves = found["curves"]
    assert curves.keys() == found["exponents"].keys()
    assert [p["size"] for p in curves["split over tokens"]] == [40_000, 80_000]
    assert [p["d_sae"] for p in curves["wide over d_sae"]] == [256, 512]
    assert [p["split"] for p in curves["parents"]] == [1, 2]
    for points in curves.values():
        assert all(p["seconds"] > 0 and p["peak_mb"] > 100 for p in points)
