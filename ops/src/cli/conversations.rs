//! `esh3ar conversations list|show|export`: a user's conversations, for people and for scripts.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand, ValueEnum};
use indicatif::ProgressBar;
use reqwest::Method;
use schemas::{ConversationId, MessageId, Party, limits::PAGE_MAX, view::Item, view::Thread};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    client::{ClientArgs, Server},
    print,
    whose::Whose,
};
use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar conversations list --as business:acme:sara
  esh3ar conversations show 0192f0c1-2b3c-5def-8123-456789abcdef --as business:acme:sara --messages 5
  esh3ar conversations export --as business:acme:sara --output sara.ndjson     all of them, a message a line

Conversations are listed newest activity first, messages oldest first. An export has a line for each message, note and deleted
message, with its conversation_id; run again it has the same lines, and those that came since.";

/// What can be done with conversations.
#[derive(Debug, Subcommand)]
pub enum ConversationsCommand {
    /// List a user's conversations, newest activity first.
    List(ListArgs),
    /// Show one with its last messages.
    Show(ShowArgs),
    /// Write out one, or all of a user's, as NDJSON: a message a line, oldest first.
    Export(ExportArgs),
}

/// Whose, and where.
#[derive(Debug, Args)]
pub(super) struct OwnArgs {
    /// Whose: business:TENANT:NAME, mobile:TENANT:+NUMBER, business:NAME or +NUMBER.
    #[arg(long = "as", value_name = "USER")]
    own: Whose,
    #[command(flatten)]
    client: ClientArgs,
}

/// Arguments of `conversations list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only those that stand so; without it those that are not put away.
    #[arg(long, value_enum, value_name = "STATUS")]
    status: Option<Stand>,
    /// At most so many.
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    own: OwnArgs,
}

/// How a conversation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stand {
    Active,
    Archived,
    Closed,
}

/// Arguments of `conversations show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The conversation.
    #[arg(value_parser = conversation)]
    id: ConversationId,
    /// So many of its last messages.
    #[arg(long, default_value_t = 20, value_name = "N")]
    messages: usize,
    #[command(flatten)]
    own: OwnArgs,
}

/// Arguments of `conversations export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The conversation; all of the user's without it.
    #[arg(value_parser = conversation)]
    id: Option<ConversationId>,
    /// Where to; the standard output without it. It is there under this name only when it is whole.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    own: OwnArgs,
}

fn conversation(text: &str) -> Result<ConversationId, String> {
    let id = text.parse::<MessageId>().map_err(|_| format!("{text} is no conversation's id: it is a UUID"))?;
    Ok(ConversationId(id.0))
}

/// A page of a list.
#[derive(Debug, Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

/// Does it.
pub(super) async fn run(command: ConversationsCommand, json: bool) -> Result<(), Failure> {
    match command {
        ConversationsCommand::List(args) => list(args, json).await,
        ConversationsCommand::Show(args) => show(args, json).await,
        ConversationsCommand::Export(args) => export(args, json).await,
    }
}

/// A list, page by page.
struct Pages<'a> {
    server: &'a Server,
    path: String,
    query: Vec<(&'static str, String)>,
    cursor: Option<String>,
    ended: bool,
}

impl<'a> Pages<'a> {
    fn new(server: &'a Server, path: impl Into<String>, query: Vec<(&'static str, String)>) -> Self {
        Self { server, path: path.into(), query, cursor: None, ended: false }
    }

    /// The next rows, at most `limit`; none at the end.
    async fn next<T: DeserializeOwned>(&mut self, limit: usize) -> Result<Vec<T>, Failure> {
        // A page may be empty and not the last: what it passed over was not asked for.
        while !self.ended {
            let mut query = self.query.clone();
            query.push(("limit", limit.clamp(1, PAGE_MAX).to_string()));
            query.extend(self.cursor.take().map(|cursor| ("cursor", cursor)));
            let page: Page<T> = self.server.json(Method::GET, &self.path, &query, None).await?;
            (self.ended, self.cursor) = (page.next_cursor.is_none(), page.next_cursor);
            if !page.items.is_empty() {
                return Ok(page.items);
            }
        }
        Ok(Vec::new())
    }
}

/// The other side of a conversation.
fn other(thread: &Thread, own: &Party) -> String {
    match own {
        Party::Mobile(_) => thread.assigned_to.to_string(),
        Party::Business(_) => thread.mobile.to_string(),
    }
}

fn word(value: impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(text)) => text,
        other => other.map(|value| value.to_string()).unwrap_or_default(),
    }
}

/// The beginning of a text, on one line.
fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(41).collect();
    if line.chars().count() > 40 { line.chars().take(39).chain(['…']).collect() } else { line }
}

async fn list(args: ListArgs, json: bool) -> Result<(), Failure> {
    let OwnArgs { own, client } = &args.own;
    let server = own.find(client)?;
    let status = args.status.map(|stand| match stand {
        Stand::Active => "active",
        Stand::Archived => "archived",
        Stand::Closed => "closed",
    });
    let query = status.map(|status| ("status", status.to_owned())).into_iter().collect();
    let mut pages = Pages::new(&server, "/v1/conversations", query);
    let mut table = print::table(&["id", "with", "status", "unread", "last activity", "last message"]);
    let mut left = args.limit;
    while left > 0 {
        // What this release does not know of a conversation is printed all the same.
        let rows: Vec<Value> = pages.next(left).await?;
        if rows.is_empty() {
            break;
        }
        left = left.saturating_sub(rows.len());
        for row in rows {
            if json {
                print::json(&row)?;
                continue;
            }
            let thread: Thread = serde_json::from_value(row)
                .map_err(|why| Failure::failed(format!("{} answered no conversation: {why}", server.url)))?;
            let last =
                thread.last.as_ref().map(|last| last.text.as_deref().map_or_else(|| "(taken back)".into(), short));
            table.add_row([
                thread.id.to_string(),
                other(&thread, &own.party),
                word(thread.status),
                thread.unread.to_string(),
                thread.last_at.to_string(),
                last.unwrap_or_default(),
            ]);
        }
    }
    match (json, left == args.limit) {
        (true, _) => Ok(()),
        (false, true) => print::line("no conversations"),
        (false, false) => print::line(table.to_string()),
    }
}

async fn show(args: ShowArgs, json: bool) -> Result<(), Failure> {
    let OwnArgs { own, client } = &args.own;
    let server = own.find(client)?;
    let path = format!("/v1/conversations/{}", args.id);
    let mut thread: Value = server.json(Method::GET, &path, &[], None).await?;
    let mut pages = Pages::new(&server, format!("{path}/messages"), vec![("order", "newest".to_owned())]);
    let mut items = Vec::<Value>::new();
    while items.len() < args.messages {
        let rows = pages.next(args.messages - items.len()).await?;
        if rows.is_empty() {
            break;
        }
        items.extend(rows);
    }
    items.reverse();
    if json {
        if let Some(fields) = thread.as_object_mut() {
            fields.insert("messages".to_owned(), Value::Array(items));
        }
        return print::json(&thread);
    }
    let mut table = print::table(&["what", "value"]);
    for (name, value) in thread.as_object().into_iter().flatten().filter(|(name, _)| *name != "last") {
        table.add_row([name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)]);
    }
    print::line(table.to_string())?;
    for item in items {
        let item: Item = serde_json::from_value(item)
            .map_err(|why| Failure::failed(format!("{} answered no message: {why}", server.url)))?;
        let who = if item.from == schemas::Sender::User(own.party.clone()) {
            "you".to_owned()
        } else {
            item.from.to_string()
        };
        let said = if item.deleted_at.is_some() { "(taken back)".to_owned() } else { item.content };
        print::line(format!("{} {who} [{}] {said}", item.accepted_at, item.status))?;
    }
    Ok(())
}

/// Where an export goes.
enum Output {
    Standard,
    /// Under another name until it is whole.
    File {
        file: BufWriter<File>,
        part: PathBuf,
        path: PathBuf,
    },
}

impl Output {
    fn open(path: Option<&PathBuf>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Standard) };
        let mut part = path.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let file = File::create(&part).map_err(|why| unwritten(&part, &why))?;
        Ok(Self::File { file: BufWriter::new(file), part, path: path.clone() })
    }

    fn write(&mut self, item: &Value) -> Result<(), Failure> {
        match self {
            Self::Standard => print::json(item),
            Self::File { file, part, .. } => writeln!(file, "{item}").map_err(|why| unwritten(part, &why)),
        }
    }

    fn end(self) -> Result<(), Failure> {
        let Self::File { file, part, path } = self else { return Ok(()) };
        let whole = file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all());
        whole.and_then(|()| std::fs::rename(&part, &path)).map_err(|why| unwritten(&path, &why))
    }
}

fn unwritten(path: &std::path::Path, why: &std::io::Error) -> Failure {
    Failure::failed(format!("{} could not be written: {why}", path.display()))
}

/// Writes out one conversation; how many lines.
async fn one(server: &Server, id: &str, output: &mut Output, bar: &ProgressBar) -> Result<u64, Failure> {
    let query = vec![("order", "oldest".to_owned())];
    let mut pages = Pages::new(server, format!("/v1/conversations/{id}/messages"), query);
    let mut lines = 0;
    loop {
        let rows: Vec<Value> = pages.next(PAGE_MAX).await?;
        if rows.is_empty() {
            return Ok(lines);
        }
        for row in &rows {
            output.write(row)?;
        }
        lines += rows.len() as u64;
        bar.inc(rows.len() as u64);
    }
}

async fn export(args: ExportArgs, json: bool) -> Result<(), Failure> {
    let OwnArgs { own, client } = &args.own;
    let server = own.find(client)?;
    let mut output = Output::open(args.output.as_ref())?;
    let bar = print::counter("messages", json);
    let (mut conversations, mut messages) = (0_u64, 0_u64);
    match args.id {
        Some(id) => {
            messages = one(&server, &id.to_string(), &mut output, &bar).await?;
            conversations = 1;
        }
        None => {
            // Those that are put away too. One that moves meanwhile may come up twice in a list: it is written out once.
            let mut done = std::collections::HashSet::new();
            for status in ["active", "archived", "closed"] {
                let mut pages = Pages::new(&server, "/v1/conversations", vec![("status", status.to_owned())]);
                loop {
                    let threads: Vec<Thread> = pages.next(PAGE_MAX).await?;
                    if threads.is_empty() {
                        break;
                    }
                    for thread in threads.iter().filter(|thread| done.insert(thread.id)) {
                        messages += one(&server, &thread.id.to_string(), &mut output, &bar).await?;
                        conversations += 1;
                        bar.set_message(format!("messages of {conversations} conversations"));
                    }
                }
            }
        }
    }
    bar.finish_and_clear();
    output.end()?;
    let told = serde_json::json!({ "conversations": conversations, "messages": messages });
    match (&args.output, json) {
        (None, _) => print::aside(format!("{messages} messages of {conversations} conversations")),
        (Some(_), true) => print::json(&told)?,
        (Some(path), false) => {
            print::line(format!("{messages} messages of {conversations} conversations in {}", path.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_is_one_short_line() {
        assert_eq!(short("hello\nthere"), "hello there");
        assert_eq!(short(&"a".repeat(40)), "a".repeat(40));
        assert_eq!(short(&"\u{1f44b}".repeat(50)).chars().count(), 40);
    }

    #[test]
    fn an_export_has_its_name_only_when_it_is_whole() {
        let folder = std::env::temp_dir().join(format!("esh3ar-export-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("all.ndjson");
        let mut output = Output::open(Some(&path)).unwrap();
        output.write(&serde_json::json!({ "a": 1 })).unwrap();
        assert!(!path.exists());
        output.end().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}\n");
        let nowhere = Output::open(Some(&folder.join("no/such/folder"))).map(|_| ()).unwrap_err();
        assert!(nowhere.sentence.contains("could not be written"), "{nowhere}");
        let _ = std::fs::remove_dir_all(&folder);
    }
}
