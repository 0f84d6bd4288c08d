"""Translate plain text with a trained model, and export the model to CTranslate2, Hugging Face and fairseq."""
