"""The embed job: plan, decode, embed, put once, seal; and what reads or checks its output."""
