"""Names for segments, from words."""
