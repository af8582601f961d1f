"""The smallest cache that keeps a share of the score, and the policy file that says which."""
