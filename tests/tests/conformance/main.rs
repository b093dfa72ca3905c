//! It keeps its contracts: every adapter of every port passes the port's suite. An adapter is added with a maker and a line.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods)]

mod embedded;
mod history;
mod talks;

use embedded::{EmbeddedLogs, LocalBackplanes, LocalCaches, LocalLimiters, LocalPresences};

mod log {
    use super::*;
    tests::log_conformance!(embedded, EmbeddedLogs::new());
    tests::log_conformance!(embedded_with_narrow_bounds, EmbeddedLogs::tight());
}

mod presence {
    use super::*;
    tests::presence_conformance!(local, LocalPresences::new());
}

mod backplane {
    use super::*;
    tests::backplane_conformance!(local, LocalBackplanes);
}

mod limiter {
    use super::*;
    tests::limiter_conformance!(local, LocalLimiters::new());
}

mod cache {
    use super::*;
    tests::cache_conformance!(local, LocalCaches::new());
}
