"""Head scores: the table, how sure it is, and the file it travels in."""
