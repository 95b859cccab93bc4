"""Make passages of extracted text."""
