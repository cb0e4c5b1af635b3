"""The anomalies job: which embedded videos are unlike all videos of an index, and since when."""
