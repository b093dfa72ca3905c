//! `esh3ar send`: one message, and where it stands.

use clap::{ArgGroup, Args, ValueEnum};
use ingest::auth::Who;
use reqwest::Method;
use schemas::Status;
use serde_json::{Map, Value, json};

use super::{client::ClientArgs, print, token};
use crate::exit::{Exit, Failure};

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar send --to +962790000001 --text \"Your parcel is at the door\"
  esh3ar send --to +962790000001 --body '{\"order\": 7}' --priority high --key order-7 --wait delivered";

/// Arguments of `send`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct SendArgs {
    /// The recipient's phone number.
    #[arg(long, value_name = "PHONE")]
    to: String,
    /// What it says, as text.
    #[arg(long, group = "what")]
    text: Option<String>,
    /// What it says, as JSON.
    #[arg(long, group = "what", value_name = "JSON")]
    body: Option<String>,
    /// A title.
    #[arg(long)]
    subject: Option<String>,
    /// How urgent it is.
    #[arg(long, value_enum)]
    priority: Option<Urgency>,
    /// The idempotency key: sending the same again makes no second message.
    #[arg(long)]
    key: Option<String>,
    /// Your own name for it; comes back in status and events.
    #[arg(long = "ref", value_name = "REF")]
    client_ref: Option<String>,
    /// Not before this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    send_at: Option<String>,
    /// Not after this time (RFC 3339).
    #[arg(long, value_name = "TIME")]
    expires_at: Option<String>,
    /// Check everything, send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait until it stands there.
    #[arg(long, value_enum, value_name = "STATUS")]
    wait: Option<Stand>,
    /// How long to wait.
    #[arg(long, default_value = "60s", value_parser = token::duration_ms, value_name = "TIME")]
    timeout: u64,
    #[command(flatten)]
    client: ClientArgs,
}

/// How urgent a message is.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Urgency {
    High,
    Normal,
    Low,
}

/// Where a message can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stand {
    Sent,
    Delivered,
    Read,
}

impl From<Stand> for Status {
    fn from(stand: Stand) -> Self {
        match stand {
            Stand::Sent => Self::Sent,
            Stand::Delivered => Self::Delivered,
            Stand::Read => Self::Read,
        }
    }
}

/// Whether waiting is over: `Some(true)` it stands there or further, `Some(false)` it never will.
fn settled(now: Status, wanted: Status) -> Option<bool> {
    match now {
        Status::Failed => Some(false),
        _ if now >= wanted => Some(true),
        _ => None,
    }
}

fn draft(args: &SendArgs) -> Result<Value, Failure> {
    let mut draft = Map::new();
    draft.insert("to".to_owned(), json!(args.to));
    match (&args.text, &args.body) {
        (_, Some(body)) => {
            let value: Value = serde_json::from_str(body)
                .map_err(|why| Failure::usage(format!("--body is not JSON ({why}); for plain text use --text")))?;
            draft.insert("content".to_owned(), value);
            draft.insert("content_type".to_owned(), json!("json"));
        }
        (text, None) => {
            draft.insert("content".to_owned(), json!(text));
        }
    }
    let priority = args.priority.map(|p| match p {
        Urgency::High => "high".to_owned(),
        Urgency::Normal => "normal".to_owned(),
        Urgency::Low => "low".to_owned(),
    });
    for (name, value) in [
        ("subject", &args.subject),
        ("priority", &priority),
        ("key", &args.key),
        ("ref", &args.client_ref),
        ("send_at", &args.send_at),
        ("expires_at", &args.expires_at),
    ] {
        if let Some(value) = value {
            draft.insert(name.to_owned(), json!(value));
        }
    }
    if args.dry_run {
        draft.insert("dry_run".to_owned(), json!(true));
    }
    Ok(Value::Object(draft))
}

/// Sends it.
pub(super) async fn run(args: SendArgs, json: bool) -> Result<(), Failure> {
    let server = args.client.find(Who::Server)?;
    let answer: Value = server.json(Method::POST, "/v1/messages", &[], Some(&draft(&args)?)).await?;
    let id = answer["id"].as_str().unwrap_or_default().to_owned();
    let Some(stand) = args.wait.filter(|_| !args.dry_run) else {
        return if json { print::json(&answer) } else { print::line(&id) };
    };
    let bar = print::spinner("waiting", json);
    let waited = tokio::time::timeout(std::time::Duration::from_millis(args.timeout), async {
        loop {
            match server.json::<Value>(Method::GET, &format!("/v1/messages/{id}"), &[], None).await {
                Ok(item) => {
                    let now: Status = serde_json::from_value(item["status"].clone()).unwrap_or_default();
                    if let Some(is_there) = settled(now, stand.into()) {
                        return Ok((is_there, item));
                    }
                }
                // Accepted a moment ago and not recorded yet.
                Err(failure) if failure.exit == Exit::Refused && is_early(&failure) => {}
                Err(failure) => return Err(failure),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let outcome = waited.await;
    bar.finish_and_clear();
    match outcome {
        Ok(Ok((true, item))) if json => print::json(&item),
        Ok(Ok((true, item))) => print::line(format!("{id} {}", item["status"].as_str().unwrap_or_default())),
        Ok(Ok((false, item))) => {
            let reason = item["reason"].as_str().unwrap_or("no reason told");
            Err(Failure::failed(format!("{id} failed: {reason}; `esh3ar trace {id}` tells the whole story")))
        }
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::failed(format!(
            "{id} is accepted and not {} after {} ms; it is not lost: `esh3ar trace {id}`",
            Status::from(stand),
            args.timeout
        ))),
    }
}

fn is_early(failure: &Failure) -> bool {
    let code = failure.problem.as_ref().map(|problem| problem.code);
    matches!(code, Some(schemas::Code::NotRecordedOrUnknown | schemas::Code::QuotaExceeded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_at_the_status_or_at_failure() {
        for (now, wanted, over) in [
            (Status::Pending, Status::Sent, None),
            (Status::Sent, Status::Sent, Some(true)),
            (Status::Sent, Status::Delivered, None),
            (Status::Read, Status::Delivered, Some(true)),
            (Status::Failed, Status::Sent, Some(false)),
        ] {
            assert_eq!(settled(now, wanted), over);
        }
    }
}
