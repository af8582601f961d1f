"""The checks of `headprobe scores validate`, grouped by what they look at."""
