"""Words and decisions: what exists and what should happen next. Pure."""
