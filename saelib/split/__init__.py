"""Splitting: parent, children, contexts, judge, controls, calibration on known truth. Knows nothing of the study or of pages.

The room is callable: `saelib.split(sae, feature, acts)` is `saelib.split.engine.split_feature` with the fields of
`SplitConfig` as keywords.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saelib.acts.activations import Activations
    from saelib.sae.sae import SAE
    from saelib.split.result import Split


class _Callable(types.ModuleType):
    """The room as a function."""

    def __call__(self, sae: SAE, feature: int, acts: Activations, **options: Any) -> Split:
        """Split one feature of an SAE.

        Args:
            sae: from `saelib.load_sae`.
            feature: its number.
            acts: from `saelib.activations`.
            options: fields of `SplitConfig`: contexts, tau, K, method, seeds, controls, seed.

        Raises:
            UserError: see `saelib.split.engine.split_feature`; or an option that is none.
        """
        from dataclasses import fields

        from saelib.base.errors import UserError
        from saelib.split.engine import SplitConfig, split_feature

        known = [f.name for f in fields(SplitConfig)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise UserError(f"options of split are {', '.join(known)}", ", ".join(unknown), "drop it, or mend its name")
        return split_feature(sae, feature, acts, SplitConfig(**options))


sys.modules[__name__].__class__ = _Callable
