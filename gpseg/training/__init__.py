"""Training: pre-training, fine-tuning, and what both keep on disk."""
