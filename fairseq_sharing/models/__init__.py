"""The shared models: fairseq's Transformer, language model and RoBERTa, with stacks tied by a layer map."""
