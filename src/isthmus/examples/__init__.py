"""Runnable examples, each a small experiment with a known answer: ``python -m isthmus.examples.moons``."""
