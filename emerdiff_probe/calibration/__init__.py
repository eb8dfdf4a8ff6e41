"""Finding where to push and how hard on pictures without labels."""
