"""Batches on the device, read ahead."""
