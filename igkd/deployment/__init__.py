"""Exports a checkpoint as a file for devices, and measures latencies."""
