"""Does a head matter? Heads switched off, and what that costs."""
