"""Base against adapted, on held-out rows, with intervals."""
