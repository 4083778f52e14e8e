"""Predicts which experts will be needed next; must not know what is resident."""
