"""The version, and nothing else: whatever stands in the package may import it."""

__version__ = "0.1.0"
