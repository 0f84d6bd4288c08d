"""What is on disk: configurations, run directories and the environment that a run recorded."""
