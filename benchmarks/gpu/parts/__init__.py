"""What is measured, one part a file: a function of the workbench and of a `note` that writes results as they come."""
