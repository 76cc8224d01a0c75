"""Many trainings: their plan, who runs them, and what they show."""
