"""The condensation loop and what one iteration is made of."""
