"""Item text: cleaned, encoded once by a language model, cached by content, whitened."""
