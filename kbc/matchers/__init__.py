"""What a matcher is, and how functions, features and networks become one."""
