"""The commands `calotype build` and `calotype store`, and the table of kernel resources."""
