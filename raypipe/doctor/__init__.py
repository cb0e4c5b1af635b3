"""``raypipe doctor``: what a job needs of this machine or cluster, and a fix for each problem."""
