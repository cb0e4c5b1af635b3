"""One package per command that runs on Ray: embed, classify, index, recommend, train, anomalies."""
