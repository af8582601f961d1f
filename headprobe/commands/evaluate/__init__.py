"""`headprobe eval`: measure what a compressed cache still answers."""
