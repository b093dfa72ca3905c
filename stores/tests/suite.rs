//! scratch
#[allow(missing_docs)]
pub mod conformance {
    #[path = "/work/main/tests/src/conformance/backplane.rs"]
    pub mod backplane;
    #[path = "/work/main/tests/src/conformance/log.rs"]
    pub mod log;
    #[path = "/work/main/tests/src/conformance/presence.rs"]
    pub mod presence;
    #[path = "/work/main/tests/src/conformance/rules.rs"]
    mod rules;
}
extern crate self as tests;
#[path = "/work/main/tests/tests/conformance/embedded.rs"]
mod embedded;
use embedded::*;
mod log {
    use super::*;
    crate::log_conformance!(embedded, EmbeddedLogs::new());
    crate::log_conformance!(tight, EmbeddedLogs::tight());
}
mod presence {
    use super::*;
    crate::presence_conformance!(local, LocalPresences::new());
}
mod backplane {
    use super::*;
    crate::backplane_conformance!(local, LocalBackplanes);
}
