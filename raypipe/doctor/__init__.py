"""``raypipe doctor``: check what a job needs from this machine or cluster, and suggest a fix for each problem."""
