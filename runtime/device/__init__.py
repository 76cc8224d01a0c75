"""The machine: the settings that suit it, memory, energy, child processes."""
