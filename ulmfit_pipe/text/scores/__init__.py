"""What a run reached: scores with intervals, the baseline beside them, repeated runs, and what to try next."""
