"""How much does each choice matter? One difference at a time."""
