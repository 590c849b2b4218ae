"""Where the embedding network of an iteration comes from."""
