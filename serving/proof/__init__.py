"""What the plug-in is held against, and scripts that show it: `python -m proof.equality MODEL PLAN` and the others."""
