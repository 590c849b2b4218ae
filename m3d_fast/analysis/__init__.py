"""How far condensed sets are from the real images they stand for."""
