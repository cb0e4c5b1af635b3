"""Objective next_video: train a ranker on watch histories."""
