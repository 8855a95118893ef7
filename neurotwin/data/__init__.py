"""Sessions, what configs make of them, and the clips that are cut from them."""
