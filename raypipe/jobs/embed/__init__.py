"""The embed job: fetch videos, decode them and embed their frames."""
