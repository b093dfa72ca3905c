//! Holds the sockets: sessions, catch-up, the registry, and the reads over HTTP.
