"""Tests on real engines: torchrun, Slurm, Ray, Azure ML's client, kills of whole sweeps (`scripts/test engines`)."""
