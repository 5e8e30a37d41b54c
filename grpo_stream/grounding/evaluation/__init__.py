"""What an evaluation measures of a policy's answers, and how it is stored."""
