//! `esh3ar tail`: the records of a topic, decoded and redacted; of a running server through its administrators' door, of a
//! stopped one from its folder.

use clap::Args;
use futures::StreamExt;
use reqwest::Method;
use schemas::{Partition, Topic};
use serde_json::Value;

use super::{client::AdminArgs, print, stopped};
use crate::{
    exit::Failure,
    tail::{Start, Wanted, read},
};

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar tail outcomes --follow
  esh3ar tail messages.high --from start --count 10

Topics: messages.high, messages.normal, messages.low, retry.1s, retry.2s, retry.4s, retry.8s, retry.16s, retry.32s, outcomes,
dead. Recipients are redacted and contents left out.";

/// Arguments of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// The topic.
    #[arg(value_parser = topic)]
    topic: Topic,
    /// Where to start in each partition: start, end or an offset. By default start, with --follow end.
    #[arg(long)]
    from: Option<Start>,
    /// One partition only.
    #[arg(long)]
    partition: Option<u16>,
    /// Stop after so many records.
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// Wait for more at the end.
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

fn topic(name: &str) -> Result<Topic, String> {
    Topic::parse(name).ok_or_else(|| {
        let names: Vec<_> = Topic::all().map(|topic| topic.name().trim_start_matches("esh3ar.")).collect();
        format!("there is no topic {name}; there are {}", names.join(", "))
    })
}

/// Reads it.
pub(super) async fn run(args: TailArgs, json: bool) -> Result<(), Failure> {
    let from = args.from.unwrap_or(if args.follow { Start::End } else { Start::First });
    if stopped::is_stopped(&args.admin).await {
        if args.follow {
            return Err(Failure::unreachable("nothing can follow: no server runs on this folder"));
        }
        let stores = stopped::open(&args.admin.data).await?;
        let (partition, count) = (args.partition.map(Partition), args.count.unwrap_or(usize::MAX));
        let wanted = Wanted { topic: args.topic, partition, from, follow: false, tenant: None };
        let cannot = |why: schemas::port::PortError| Failure::failed(format!("the log cannot be read: {why}"));
        let records = read(stores.log.clone(), wanted).await.map_err(cannot)?.take(count);
        let mut records = std::pin::pin!(records);
        while let Some(record) = records.next().await {
            show(&record.map_err(cannot)?, json)?;
        }
        return Ok(());
    }
    let server = args.admin.find()?;
    let from = match from {
        Start::First => "start".to_owned(),
        Start::End => "end".to_owned(),
        Start::At(offset) => offset.to_string(),
    };
    let mut query = vec![("from", from), ("follow", args.follow.to_string())];
    query.extend(args.partition.map(|p| ("partition", p.to_string())));
    query.extend(args.count.map(|n| ("count", n.to_string())));
    let answer = server.ask(Method::GET, &format!("/admin/v1/tail/{}", args.topic), &query, None).await?;
    let (mut pieces, mut rest) = (answer.bytes_stream(), Vec::new());
    while let Some(piece) = pieces.next().await {
        rest.extend_from_slice(&piece.map_err(|_| Failure::failed("the server went away"))?);
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            if let Ok(record) = serde_json::from_slice(&line) {
                show(&record, json)?;
            }
        }
    }
    Ok(())
}

/// One record as a line: where and when it stands, then what it says.
fn show(record: &Value, json: bool) -> Result<(), Failure> {
    if json {
        return print::json(record);
    }
    let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let head = format!("{} {}@{}", text("at"), record["partition"], record["offset"]);
    let said = record.as_object().into_iter().flatten();
    let said = said.filter(|(name, _)| !["topic", "at", "partition", "offset"].contains(&name.as_str()));
    let said: Vec<_> = said.map(|(name, value)| format!("{name} {value}")).collect();
    print::line(format!("{head} {}", said.join(" ")))
}
