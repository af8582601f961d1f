"""Kernels that compute attention over a ragged store, and the choice among them."""
