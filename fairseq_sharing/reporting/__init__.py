"""Many result files to tables, figures and a page; requires neither torch nor fairseq."""
