"""The tasks that are built in, a file each; `headprobe.evaluation.task` has their registry."""
