"""The data gate: what ruins a fine-tune is found, shown by file and line, and refused, warned of or mended."""
