"""What SQL functions in PL/Python call."""
