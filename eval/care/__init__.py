"""Customer support: glossary, scenarios, and dialogues about them."""
