"""The classify job: label every embedded video with a trained model."""
