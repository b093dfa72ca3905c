//! Roles that run alone: they meet through a log, a history and presence that several machines share, so they need adapters
//! which this build does not have.

use clap::Args;

use crate::exit::Failure;

pub(super) const EXAMPLE: &str =
    "Example:\n  esh3ar up        runs every role in one process and needs no server beside it";

/// Arguments of a role.
#[derive(Debug, Args)]
pub struct RoleArgs {
    #[command(flatten)]
    config: super::ConfigArgs,
}

/// Says what a role would need.
pub(super) fn refuse(role: &str, urls: &str) -> Failure {
    Failure::usage(format!(
        "`esh3ar {role}` alone needs {urls} URLs, whose adapters are not in this build; `esh3ar up` runs every role in one process"
    ))
}
