"""The cost of a configuration before training: parameters, memory and MACs, as tables and drawings."""
