"""Where questions come from, and which part of them is for what."""
