"""Is what nnseg keeps on disk still what it wrote, and whole."""
