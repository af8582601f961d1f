"""Time and memory of compressed caches against the full one."""
