//! `esh3ar trace`: everything that happened to a message.

use clap::Args;
use ingest::auth::Who;
use reqwest::Method;
use schemas::{MessageId, view::Trace};

use super::{client::ClientArgs, print};
use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Example:
  esh3ar trace $(esh3ar send --to +962790000001 --text Hello)";

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The message.
    id: MessageId,
    #[command(flatten)]
    client: ClientArgs,
}

/// Tells it.
pub(super) async fn run(args: TraceArgs, json: bool) -> Result<(), Failure> {
    let server = args.client.find(Who::Server)?;
    let trace: Trace = server.json(Method::GET, &format!("/v1/messages/{}/trace", args.id), &[], None).await?;
    if json {
        return print::json(&trace);
    }
    print::line(format!("{} {}", trace.id, trace.status))?;
    let mut table = print::table(&["when", "what", "attempt", "device", "why"]);
    for stage in trace.stages {
        let attempt = stage.attempt.map(|n| n.to_string()).unwrap_or_default();
        let why = stage.reason.map_or("", schemas::Reason::word);
        table.add_row([stage.at.to_string(), stage.stage, attempt, stage.device.unwrap_or_default(), why.to_owned()]);
    }
    print::line(table.to_string())
}
