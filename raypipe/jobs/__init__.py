"""One package for each command that works on Ray: embed, classify, index, recommend, train."""
