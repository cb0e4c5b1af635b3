"""The embed job: fetch, decode, embed."""
