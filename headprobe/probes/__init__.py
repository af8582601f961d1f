"""Needles, haystacks, and the grid of prompts that hide the ones in the other."""
