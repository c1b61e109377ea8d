"""The commands `calotype build` and `calotype cache`, and the table of kernel resources."""
