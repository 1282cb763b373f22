"""The order of the work, and what each step says."""
