"""Files that several commands write and read: written whole, locked, known by digest."""
