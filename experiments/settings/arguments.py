"""Types of command line arguments, for `argparse`."""

import argparse


def positive_integer(text: str) -> int:
    """1, 2, 3, …"""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"should be a positive integer, got '{text}'")
    return int(text)


def positive_number(text: str) -> float:
    """Any number above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise argparse.ArgumentTypeError(f"should be a positive number, got '{text}'")
    return value
