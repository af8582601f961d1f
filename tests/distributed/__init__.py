"""Runs of several processes on the loopback interface."""
