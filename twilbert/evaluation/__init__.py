"""Scores of a pre-trained model on pairs and texts, and the page that shows them; the command is evaluate.py."""
