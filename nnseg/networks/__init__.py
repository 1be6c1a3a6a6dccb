"""The networks of the papers, one file each, and `build`, which makes one from its record."""
