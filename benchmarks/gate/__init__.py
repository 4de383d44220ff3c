"""How well the data gate finds what is planted, in real rows of installed packages."""
