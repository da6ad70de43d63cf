"""What scripts/bench measures: each row is a ratio of whole commands, or of loops, timed in one run on one machine."""
