"""Networks and their weights on disk."""
