"""Rows on disk: sorted by digest, counted by place, named by a Merkle tree."""
