"""What we see: the metric catalogue as data."""
