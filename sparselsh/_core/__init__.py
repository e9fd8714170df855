# The compiled core: arrays in, arrays out; it knows no class of the package and trusts its input.
