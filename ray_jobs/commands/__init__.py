"""The commands, as click has them: a file for each part of the list that `--help` prints."""
