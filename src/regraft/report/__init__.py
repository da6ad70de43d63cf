"""Run folders become tables, statistics and pictures; nothing here imports torch."""
