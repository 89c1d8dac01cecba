"""Full runs: functions that return a configuration."""
