"""A chat bridge and session manager: any chat platform in front of any AI agent."""
