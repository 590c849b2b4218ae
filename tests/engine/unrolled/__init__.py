"""Tests of condensation by back-propagation through training."""
