//! `esh3ar listen`: a user's messages as they come, a line a message.

use clap::{ArgGroup, Args};
use ingest::auth::Who;
use schemas::{Cursor, DeviceId, Name, Phone as Number, view::Item};

use super::{
    client::ClientArgs,
    phone::{Met, Phone},
    print, token,
};
use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar listen --user +962790000001
  esh3ar listen --user +962790000001 --json --count 1

Each message is acknowledged after its line is printed; with --no-ack none is, and the server tries again. The device keeps its
place: what came while nobody listened comes at the next start. Ends on Ctrl-C; comes back by itself when the server restarts.";

/// Arguments of `listen`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("who").required(true))]
pub struct ListenArgs {
    /// The mobile user.
    #[arg(long, group = "who", value_name = "PHONE", value_parser = token::phone)]
    user: Option<Number>,
    /// The business user.
    #[arg(long, group = "who", value_name = "NAME")]
    business: Option<Name>,
    /// Which of the user's devices this is.
    #[arg(long, default_value = "cli", env = "ESH3AR_DEVICE")]
    device: DeviceId,
    /// Start after this place instead of where the device stood.
    #[arg(long)]
    cursor: Option<Cursor>,
    /// Do not acknowledge.
    #[arg(long)]
    no_ack: bool,
    /// Stop after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    #[command(flatten)]
    client: ClientArgs,
}

/// Listens.
pub(super) async fn run(args: ListenArgs, json: bool) -> Result<(), Failure> {
    let who = match (args.user, &args.business) {
        (Some(phone), _) => Who::Mobile(phone),
        (None, Some(name)) => Who::Business(name.clone()),
        (None, None) => return Err(Failure::usage("name a user by --user or --business")),
    };
    let server = args.client.find_sockets(who)?;
    let mut phone =
        Phone::new(&server.url, server.token.clone(), args.device.clone(), args.cursor.clone(), !args.no_ack)?;
    let mut left = args.count.unwrap_or(usize::MAX);
    while left > 0 {
        let met = tokio::select! {
            met = phone.next() => met?,
            _ = tokio::signal::ctrl_c() => break,
        };
        match met {
            Met::Welcome { recovered } => {
                if !recovered {
                    print::aside("some messages since that cursor are no longer kept: `GET /v1/messages` has what is");
                }
                if !json {
                    print::aside("connected");
                }
            }
            Met::Items(items) => {
                let shown = items.len().min(left);
                for item in &items[..shown] {
                    show(item, json)?;
                }
                left -= shown;
                // Only what was printed is acknowledged: an inbox is in order, so the last one's cursor covers it.
                let last = items[..shown].iter().rev().find_map(|item| item.cursor.as_ref());
                if let Some(cursor) = last {
                    phone.acknowledge(cursor).await;
                }
            }
            Met::Status(change) if json => print::json(&change)?,
            Met::Status(change) => print::line(format!("{} {} {}", change.at, change.id, change.status))?,
            // What it does not ask for, and what it never sends.
            Met::Accepted { .. }
            | Met::Refused { .. }
            | Met::Read { .. }
            | Met::Typing { .. }
            | Met::Presence { .. } => {}
            Met::Gone { after_ms, why } => print::aside(format!("{why}; coming back in {after_ms} ms")),
        }
    }
    phone.close().await;
    Ok(())
}

fn show(item: &Item, json: bool) -> Result<(), Failure> {
    if json {
        return print::json(item);
    }
    let subject = item.subject.as_ref().map(|subject| format!("{subject}: ")).unwrap_or_default();
    print::line(format!("{} {} {subject}{}", item.accepted_at, item.from, item.content))
}
