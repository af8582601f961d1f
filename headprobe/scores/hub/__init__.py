"""Score files on the Hugging Face hub: dataset repositories that strangers may have filled."""
