"""Methods as the command calls them."""

CONV, EXACT, TORCH = "conv_attention", "exact_attention", "torch SDPA"
PLAIN = "plain NumPy"
