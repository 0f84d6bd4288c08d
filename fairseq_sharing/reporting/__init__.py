"""Turn result files into tables, figures and a page; requires neither torch nor fairseq."""
