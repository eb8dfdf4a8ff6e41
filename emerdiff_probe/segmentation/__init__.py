"""From correspondences to segments."""
