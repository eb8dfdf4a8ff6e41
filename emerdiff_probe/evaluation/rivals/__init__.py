"""Segmenters to measure against, on the same probed image; `catalogue` lists them."""
