"""Train networks on a condensed set and test them."""
