"""From a trained run to a result: translate, score, compare, tabulate and draw."""
