"""`headprobe scores`: look at score files, check, convert, compare and share them."""
