"""Readers and writers of the score files of other programs, one file a family."""
