"""TRL's configurations, read as runs of preftune: losses (what its names mean) and run (everything else)."""
