"""Worker classes to copy from. `SKALDS_WORKERS=examples.workers` makes a skald run them."""
