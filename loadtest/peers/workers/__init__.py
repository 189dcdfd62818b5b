"""Scripts that run one contender each, in an interpreter of its own. They import nothing of ours but `protocol`."""
