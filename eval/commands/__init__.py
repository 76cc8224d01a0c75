"""What people type: a parser, and the work that it starts."""
