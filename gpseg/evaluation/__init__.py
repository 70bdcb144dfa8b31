"""Scores, the rivals to beat, reports, and masks for new images."""
