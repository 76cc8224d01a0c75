"""What the records of all variants say together."""
