"""Checks of what scores claim."""
