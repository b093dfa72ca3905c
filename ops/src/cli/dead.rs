//! `esh3ar dead list|show|requeue`: the messages that were given up.

use clap::{ArgGroup, Args, Subcommand};
use reqwest::Method;
use schemas::{MessageId, Tenant, Timestamp};
use serde_json::{Map, Value, json};

use super::{client::AdminArgs, print};
use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar dead list --reason no_ack --since 2026-11-22T00:00:00Z
  esh3ar dead show 0192f0c1-2b3c-7def-8123-456789abcdef
  esh3ar dead requeue --all --tenant acme --dry-run";

/// What can be done with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List them, newest first.
    List(ListArgs),
    /// Show one with everything known of it.
    Show(ShowArgs),
    /// Try them again, in a new round with attempts of its own.
    Requeue(RequeueArgs),
}

/// Which dead letters.
#[derive(Debug, Args)]
pub(super) struct FilterArgs {
    /// Of one tenant.
    #[arg(long)]
    tenant: Option<Tenant>,
    /// With this reason, e.g. no_ack.
    #[arg(long)]
    reason: Option<String>,
    /// To this user, as TENANT/+NUMBER.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Given up at or after this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Given up before this time (RFC 3339).
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Also those that were requeued already.
    #[arg(long)]
    requeued: bool,
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).ok_or_else(|| format!("{text} is not RFC 3339: write 2026-11-22T07:00:00Z"))
}

impl FilterArgs {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let all = [
            ("tenant", self.tenant.as_ref().map(ToString::to_string)),
            ("reason", self.reason.clone()),
            ("user", self.user.clone()),
            ("since", self.since.map(|t| t.to_string())),
            ("until", self.until.map(|t| t.to_string())),
            ("requeued", self.requeued.then(|| "true".to_owned())),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    fn json(&self) -> Value {
        let pairs = self.pairs().into_iter();
        let map: Map<_, _> = pairs
            .map(|(name, value)| (name.to_owned(), if name == "requeued" { json!(true) } else { json!(value) }))
            .collect();
        Value::Object(map)
    }
}

/// Arguments of `dead list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Arguments of `dead show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The message.
    id: MessageId,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Arguments of `dead requeue`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub struct RequeueArgs {
    /// The messages.
    #[arg(group = "which", conflicts_with_all = ["tenant", "reason", "user", "since", "until", "requeued"])]
    ids: Vec<MessageId>,
    /// All that the filter takes.
    #[arg(long, group = "which")]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Say what would be done, do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Does it.
pub(super) async fn run(command: DeadCommand, json: bool) -> Result<(), Failure> {
    match command {
        DeadCommand::List(args) => list(args, json).await,
        DeadCommand::Show(args) => show(args, json).await,
        DeadCommand::Requeue(args) => requeue(args, json).await,
    }
}

async fn list(args: ListArgs, json: bool) -> Result<(), Failure> {
    let server = args.admin.find()?;
    let mut table = print::table(&["id", "given up", "tenant", "to", "reason", "round", "attempts", "requeued"]);
    let (mut cursor, mut left) = (None::<String>, args.limit);
    while left > 0 {
        let mut query = args.filter.pairs();
        query.push(("limit", left.min(schemas::limits::PAGE_MAX).to_string()));
        query.extend(cursor.take().map(|cursor| ("cursor", cursor)));
        let page: Value = server.json(Method::GET, "/admin/v1/dead", &query, None).await?;
        let items = page["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        left = left.saturating_sub(items.len());
        for item in items {
            if json {
                print::json(item)?;
                continue;
            }
            let cell = |name: &str| match &item[name] {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            table.add_row(["id", "at", "tenant", "to", "reason", "round", "attempts", "requeued_at"].map(cell));
        }
        cursor = page["next_cursor"].as_str().map(str::to_owned);
        if cursor.is_none() || items.is_empty() {
            break;
        }
    }
    match (json, left == args.limit) {
        (true, _) => Ok(()),
        (false, true) => print::line("no dead letters"),
        (false, false) => print::line(table.to_string()),
    }
}

async fn show(args: ShowArgs, json: bool) -> Result<(), Failure> {
    let letter: Value = args.admin.find()?.json(Method::GET, &format!("/admin/v1/dead/{}", args.id), &[], None).await?;
    if json {
        return print::json(&letter);
    }
    let mut table = print::table(&["what", "value"]);
    for (name, value) in letter.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        table.add_row([name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)]);
    }
    print::line(table.to_string())
}

async fn requeue(args: RequeueArgs, json: bool) -> Result<(), Failure> {
    let body = if args.all {
        json!({ "filter": args.filter.json(), "dry_run": args.dry_run })
    } else {
        json!({ "ids": args.ids, "dry_run": args.dry_run })
    };
    let server = args.admin.find()?;
    let bar = print::spinner("requeueing", json);
    let report = server.json::<Value>(Method::POST, "/admin/v1/dead/requeue", &[], Some(&body)).await;
    bar.finish_and_clear();
    let report = report?;
    let (done, refused) = (report["requeued"].as_u64().unwrap_or(0), report["refused"].as_u64().unwrap_or(0));
    if json {
        print::json(&report)?;
    } else {
        print::line(format!("{done} {}", if args.dry_run { "would be requeued" } else { "requeued" }))?;
        for refusal in report["refusals"].as_array().into_iter().flatten() {
            let text = |name: &str| refusal[name].as_str().unwrap_or_default().to_owned();
            print::line(format!("not {}: {}", text("id"), text("why")))?;
        }
    }
    if refused == 0 { Ok(()) } else { Err(Failure::failed(format!("{refused} could not be requeued"))) }
}
