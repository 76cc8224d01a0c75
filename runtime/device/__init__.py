"""The machine: settings that suit it, what it takes, memory, energy, child processes."""
