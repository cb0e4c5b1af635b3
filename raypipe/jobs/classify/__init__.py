"""The classify job: what a trained model says of every video that embed sealed."""
