"""Local language models: finding, loading, sampling and scoring them.

Knows transformers, PEFT and GGUF. Does not know teachers, students, recipes or audits.
"""
