"""The confined child process, from both ends."""
