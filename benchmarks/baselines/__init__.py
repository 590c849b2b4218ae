"""Implementations to compare with: the published loop, other libraries, plain torch."""
