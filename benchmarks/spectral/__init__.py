"""Time, memory and agreement of the spectral pass beside what it is compared to."""
