"""The config groups, as they travel inside the wheel."""
