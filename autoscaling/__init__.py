"""How many: signals in, replicas per tier out. Pure."""
