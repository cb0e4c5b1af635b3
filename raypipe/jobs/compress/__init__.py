"""The compress job: make a trained model smaller and faster, and measure what that costs."""
