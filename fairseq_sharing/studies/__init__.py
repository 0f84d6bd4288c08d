"""Run whole studies of rows and seeds, and estimate their cost."""
