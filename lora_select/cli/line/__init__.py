"""Commands that walk the line: as far as the measurements, as far as the decision, to the end."""
