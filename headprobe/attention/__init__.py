"""The attention of a model: one hook for every layer's call, and dense attention."""
