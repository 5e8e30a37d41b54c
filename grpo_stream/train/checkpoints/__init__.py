"""What a checkpoint holds, when it is whole, and how a run resumes from one."""
