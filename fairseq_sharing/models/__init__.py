"""Models with layer sharing: fairseq's Transformer, language model and RoBERTa."""
