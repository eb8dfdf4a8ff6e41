"""What is read off a trajectory: features, and which pixels answer."""
