"""Outputs that are planned, put once and sealed: what every batch job stores, reads and checks. No Ray here."""
