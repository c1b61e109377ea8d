"""The store: folders addressed by the content that they were made from."""
