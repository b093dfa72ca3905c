//! The door: HTTP in, log out. Admission, names, quotas and refusals.
