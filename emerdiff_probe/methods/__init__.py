"""What can be run on an image: EmerDiff, its rivals, namers and references."""
