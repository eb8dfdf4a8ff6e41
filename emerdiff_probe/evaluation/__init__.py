"""Scores of segmentations against ground truth."""
