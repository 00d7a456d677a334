"""What runs in processes of its own, and how they are started."""
