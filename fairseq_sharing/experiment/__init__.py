"""Configurations, studies, run directories and the recorded environment of a run."""
