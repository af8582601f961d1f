"""Which detector is right? All of them on one model, held against what the answers need."""
