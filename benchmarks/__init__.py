"""What was measured, and the scripts that did."""
