"""Class-incremental learning with condensed sets as the memory."""
