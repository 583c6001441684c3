"""Evaluation sets: official files in, questions and the official score out. Answers may come from any model."""
