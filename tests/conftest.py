"""What Hypothesis draws: the same in every run, so that a test fails for what was changed, not for what was drawn.

`make fuzz` draws anew.
"""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("same", derandomize=True)
settings.register_profile("anew", derandomize=False, print_blob=True)
settings.load_profile("same")
