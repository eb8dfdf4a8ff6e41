"""Pictures to work on, with labels or without."""
