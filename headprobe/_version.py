"""The version, and nothing else: every module of the package may import it."""

__version__ = "0.1.0"
