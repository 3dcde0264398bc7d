"""Investigation and follow-up questions, apart from p."""
