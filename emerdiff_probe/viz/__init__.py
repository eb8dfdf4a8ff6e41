"""Looking at results: figures as pure functions of results."""
