"""Published bias curves."""
