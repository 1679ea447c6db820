"""The model, its template and tokenizer, and how sequences are laid out."""
