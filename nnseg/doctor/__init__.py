"""Is a raw dataset sound, what looks odd in it, and what can be mended."""
