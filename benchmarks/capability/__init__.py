"""What each variant really does: measured cell by cell, read by the selector and by people."""
