//! Keeps: the log, the history, presence and the backplane, behind the ports.
