//! Runs: the one binary, its configuration, roles, telemetry and command line.
