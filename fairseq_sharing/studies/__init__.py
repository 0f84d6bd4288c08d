"""Many runs: tables of rows and seeds, and estimates of what they cost."""
