"""Keep a different number of KV entries for each head: which entries, how many, and the cache that holds them."""
