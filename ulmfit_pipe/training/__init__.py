"""Training: layer groups, freezing, schedules, phases, the loop. Torch and accelerate only."""
