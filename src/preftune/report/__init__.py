"""One HTML page and one model card for a run."""
