"""Batches for training: demonstrations to imitate, as token ids."""
