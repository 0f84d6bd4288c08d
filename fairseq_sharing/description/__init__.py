"""What a configuration costs before it is trained: parameters, memory and MACs, as tables and pictures."""
