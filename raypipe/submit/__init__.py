"""Jobs on a cluster that is reached by the HTTP address of its job API, as ``raypipe submit`` sends them."""
