"""Runs and their folders: made, continued, shown, listed, drawn, exported and cleaned up."""
