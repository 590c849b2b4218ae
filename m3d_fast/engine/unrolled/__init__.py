"""Condensation by back-propagation through the training of networks on the synthetic images."""
