"""Scores of segmentations, and their intervals."""
