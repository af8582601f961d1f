"""Pictures of head scores: a figure for paper and screen, and one made of characters for the terminal."""
