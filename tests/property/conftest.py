"""How hard hypothesis tries: `HYPOTHESIS_PROFILE=ci` (also when CI is set) takes 1,000 examples a test, else 150."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

_COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    "phases": (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
}
settings.register_profile("skalds-ci", max_examples=1_000, derandomize=True, print_blob=True, **_COMMON)
settings.register_profile("skalds", max_examples=150, **_COMMON)
settings.load_profile("skalds-ci" if os.environ.get("CI") or os.environ.get("HYPOTHESIS_PROFILE") == "ci" else "skalds")
