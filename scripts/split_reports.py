"""Write the committed split reports anew: reports/split-hyphen and reports/saelens-split.

    python scripts/split_reports.py                      # the study's parent: hyphen classes, automatic contexts, named-clean
    python scripts/split_reports.py --saes FOLDER        # also SAEs that sae-lens trained: FOLDER/standard, FOLDER/batchtopk

Those of sae-lens come from `scripts/train_with_saelens.py` (standard, 256 features; BatchTopK, 512 features and L0 16; 1,000
steps); what is split is their feature that best marks the hyphen on select. A minute each on 2 cores, by named-clean four.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from saelib.report.split_report import split_text, write_split
from saelib.sae.load import load_sae
from saelib.sae.sae import SAE
from saelib.split.engine import SplitConfig, split_feature
from saelib.split.kinds import best_feature_of_kind
from saelib.study import selection, study, texts
from saelib.study.profiles import get_profile

REPORTS = Path(__file__).parents[1] / "reports"
SAELENS = {"standard": "saelens-split", "batchtopk": "saelens-split/batchtopk"}


def wanted(saes: Path | None) -> Iterator[tuple[str, SAE, int, SplitConfig]]:
    """Folder, SAE, feature and settings of each report."""
    profile = get_profile("mini")
    narrow, chosen, acts = study.narrow_sae(profile).sae, selection.parent(profile), texts.of_profile(profile)
    for folder, contexts, method in (
        ("split-hyphen", "hyphen", "children"),
        ("split-hyphen/automatic", "automatic", "children"),
        ("split-hyphen/named", "hyphen", "named-clean"),
    ):
        yield folder, narrow, chosen.feature, SplitConfig(contexts=contexts, tau=chosen.tau, method=method)
    if saes is None:
        return
    for name, folder in SAELENS.items():
        sae = load_sae(saes / name)
        yield (
            folder,
            sae,
            best_feature_of_kind(acts.stores["select"], sae, acts.model, "hyphen"),
            SplitConfig(contexts="hyphen"),
        )


def main() -> None:
    """Split, write, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saes", type=Path)
    acts = texts.of_profile(get_profile("mini"))
    for folder, sae, feature, cfg in wanted(parser.parse_args().saes):
        split = split_feature(sae, feature, acts, cfg)
        print(split_text(split).splitlines()[-1], write_split(split, REPORTS / folder), flush=True)


if __name__ == "__main__":
    main()
