"""Files that an export to Hugging Face copies into its folder; they import transformers and nothing of this package."""
