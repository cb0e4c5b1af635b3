"""Objectives classify and masked_frame: train models of the frames of a video."""
