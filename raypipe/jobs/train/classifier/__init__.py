"""Objectives classify, self_train, masked_frame and frame_order: train models of the frames of a video."""
