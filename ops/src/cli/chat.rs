//! `esh3ar chat`: a conversation in the terminal, line by line, with ticks; in a pipe as well.
//!
//! One line is on its way at a time, under a name of its own: so the order is that of the input, and what is sent again after
//! a broken connection is still one message.

mod talk;

use std::{
    io::{BufRead, IsTerminal},
    time::Duration,
};

use clap::{Args, ValueEnum};
use reqwest::Method;
use schemas::{Code, ConversationId, DeviceId, MessageId, Party, Ref, Status, conversation::UpTo, frame::ClientFrame};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use self::talk::{Show, Talk};
use super::{
    client::{ClientArgs, Server},
    phone::{Met, Phone},
    print, token,
    whose::{Whose, other},
};
use crate::exit::Failure;

pub(super) const EXAMPLE: &str = "Examples:
  esh3ar chat --as business:acme:sara --with +962790000001
  esh3ar chat --as +962790000001 --with business:sara
  echo 'Your parcel is at the door' | esh3ar chat --as business:acme:sara --with +962790000001 --wait read

A line is a message. Ticks: √ accepted, √√ delivered, √√ read. What comes is marked as read when it is printed. Ends at the end
of the input (Ctrl-D) once everything is accepted, with --follow on Ctrl-C alone. Commands: /edit TEXT and /delete for one's last
message, /archive, /close, /reopen, /quit; a line that begins with // says the rest of it.";

/// How long what was accepted may take to be recorded before a command about it is refused, ms.
const RECORDED_MS: u64 = 5_000;
/// Lines that were read ahead.
const AHEAD: usize = 16;
/// Between two tries of a line that was refused for a while, where the server does not say, ms.
const AGAIN_MS: u64 = 1_000;

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Who talks: business:TENANT:NAME, mobile:TENANT:+NUMBER, business:NAME or +NUMBER.
    #[arg(long = "as", value_name = "USER")]
    own: Whose,
    /// With whom: +NUMBER, or business:NAME.
    #[arg(long, value_name = "USER", value_parser = other)]
    with: Party,
    /// So many of the last messages are shown first.
    #[arg(long, default_value_t = 10, value_name = "N")]
    last: usize,
    /// Do not mark what comes as read.
    #[arg(long)]
    no_read: bool,
    /// Stay after the end of the input, until Ctrl-C.
    #[arg(long)]
    follow: bool,
    /// At the end of the input, wait until the last message stands there.
    #[arg(long, value_enum, value_name = "STATUS", conflicts_with = "follow")]
    wait: Option<Stand>,
    /// How long a message may take to be accepted, and to be waited for.
    #[arg(long, default_value = "60s", value_parser = token::duration_ms, value_name = "TIME")]
    timeout: u64,
    /// Which of the user's devices this is.
    #[arg(long, default_value = "chat", env = "ESH3AR_DEVICE")]
    device: DeviceId,
    #[command(flatten)]
    client: ClientArgs,
}

/// Where the last message can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Stand {
    Delivered,
    Read,
}

/// A page of messages, as far as it is needed here.
#[derive(Debug, Deserialize)]
struct Page {
    items: Vec<schemas::view::Item>,
}

/// Gets the conversation of a pair, or makes it.
async fn open(server: &Server, with: &Party) -> Result<ConversationId, Failure> {
    let body = json!({ "with": with.to_string() });
    let answer: Value = server.json(Method::POST, "/v1/conversations", &[], Some(&body)).await?;
    // Made, and not recorded yet: the answer names it all the same.
    let id = if answer["conversation_id"].is_null() { &answer["id"] } else { &answer["conversation_id"] };
    serde_json::from_value(id.clone())
        .map_err(|why| Failure::failed(format!("{} answered no conversation: {why}", server.url)))
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// A message.
    Say(String),
    /// Another text for one's last message.
    Edit(String),
    /// One's last message is taken back.
    Delete,
    /// Something of the whole conversation: a word of its path.
    Ask(&'static str),
    /// An end.
    Quit,
    /// Nothing.
    Nothing,
    /// No command of ours.
    Unknown,
}

fn line(text: &str) -> Line {
    let text = text.trim_end();
    if let Some(said) = text.strip_prefix("//") {
        return Line::Say(format!("/{said}"));
    }
    match text.split_once(' ').unwrap_or((text, "")) {
        ("", "") => Line::Nothing,
        ("/quit", "") => Line::Quit,
        ("/delete", "") => Line::Delete,
        ("/edit", new) if !new.trim().is_empty() => Line::Edit(new.trim().to_owned()),
        ("/archive", "") => Line::Ask("archive"),
        ("/close", "") => Line::Ask("close"),
        ("/reopen", "") => Line::Ask("reopen"),
        (word, _) if word.starts_with('/') => Line::Unknown,
        _ => Line::Say(text.to_owned()),
    }
}

/// Lines of the standard input, read by a thread that the end of the process does not wait for.
fn input() -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines() {
            let Ok(line) = line else { break };
            if send.blocking_send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// A line on its way.
struct Under {
    client_ref: Ref,
    text: String,
    /// It was refused for a while and is sent again then.
    again: Option<tokio::time::Instant>,
    /// When it must be accepted.
    until: tokio::time::Instant,
}

struct Chat {
    args: ChatArgs,
    server: Server,
    conversation: ConversationId,
    phone: Phone,
    talk: Talk,
    under: Option<Under>,
    connected: bool,
    count: u64,
    /// This run's part of the names of its messages.
    run: String,
}

/// Talks.
pub(super) async fn run(args: ChatArgs, json: bool) -> Result<(), Failure> {
    let server = args.own.find_sockets(&args.client)?;
    let conversation = open(&server, &args.with).await?;
    let path = format!("/v1/conversations/{conversation}/messages");
    let last = args.last.clamp(1, schemas::limits::PAGE_MAX);
    let mut page: Page = server.json(Method::GET, &path, &[("limit", last.to_string())], None).await?;
    if args.last == 0 {
        page.items.clear();
    }
    let phone = Phone::new(&server.url, server.token.clone(), args.device.clone(), None, true)?;
    let mut talk = Talk::new(args.own.party.clone(), conversation, json);
    page.items.reverse();
    for item in &page.items {
        show(talk.item(item, true))?;
    }
    let run = uuid::Uuid::new_v4().simple().to_string();
    let (under, connected, count) = (None, false, 0);
    let mut chat = Chat { args, server, conversation, phone, talk, under, connected, count, run };
    // What was shown is read.
    let unread = page.items.iter().rev().find(|item| chat.talk.is_theirs(item)).map(|item| item.id);
    chat.talks(unread, json).await?;
    chat.phone.close().await;
    Ok(())
}

fn show(show: Show) -> Result<(), Failure> {
    match show {
        Show::Nothing => Ok(()),
        Show::Line(text) => print::line(text),
        Show::Json(value) => print::json(&value),
        Show::Aside(text) => {
            print::aside(text);
            Ok(())
        }
    }
}

impl Chat {
    async fn talks(&mut self, mut unread: Option<MessageId>, json: bool) -> Result<(), Failure> {
        let mut lines = input();
        let (mut open, mut ends) = (true, None);
        if !json && std::io::stdin().is_terminal() {
            print::aside(format!("with {}; /quit or Ctrl-D ends", self.args.with));
        }
        loop {
            if !open && self.under.is_none() && !self.args.follow {
                let wanted = self.args.wait.map(|stand| match stand {
                    Stand::Delivered => Status::Delivered,
                    Stand::Read => Status::Read,
                });
                match wanted.map(|wanted| self.talk.stands(wanted)) {
                    None | Some(Some(true)) => return Ok(()),
                    Some(Some(false)) => return Err(Failure::failed("the last message failed")),
                    Some(None) => {
                        ends.get_or_insert_with(|| self.later(self.args.timeout));
                    }
                }
            }
            let again = self.under.as_ref().map(|under| under.again.unwrap_or(under.until));
            let next = [again, ends].into_iter().flatten().min().unwrap_or_else(|| self.later(3_600_000));
            tokio::select! {
                met = self.phone.next() => {
                    self.met(met?, &mut unread).await?;
                    if self.connected && !self.args.no_read && let Some(id) = unread.take() {
                        let (conversation_id, up_to) = (Some(self.conversation), Some(UpTo::Id(id)));
                        self.phone.say(&ClientFrame::Read { ids: Vec::new(), conversation_id, up_to }).await;
                    }
                }
                line = lines.recv(), if open && self.connected && self.under.is_none() => match line {
                    Some(text) => open = self.line(&text).await?,
                    None => open = false,
                },
                () = tokio::time::sleep_until(next) => self.time(ends).await?,
                _ = tokio::signal::ctrl_c() => return Ok(()),
            }
        }
    }

    fn later(&self, ms: u64) -> tokio::time::Instant {
        tokio::time::Instant::now() + Duration::from_millis(ms)
    }

    /// Something is due.
    async fn time(&mut self, ends: Option<tokio::time::Instant>) -> Result<(), Failure> {
        let now = tokio::time::Instant::now();
        let ms = self.args.timeout;
        if ends.is_some_and(|ends| ends <= now) {
            return Err(Failure::failed(format!("the last message is accepted, and did not get there within {ms} ms")));
        }
        let Some(under) = &mut self.under else { return Ok(()) };
        if under.until <= now {
            return Err(Failure::failed(format!("“{}” was not accepted within {ms} ms", under.text)));
        }
        if under.again.take().is_some() {
            self.send().await;
        }
        Ok(())
    }

    /// Does what a line says; whether there is to be another.
    async fn line(&mut self, text: &str) -> Result<bool, Failure> {
        let path = format!("/v1/conversations/{}", self.conversation);
        match line(text) {
            Line::Nothing => {}
            Line::Quit => return Ok(false),
            Line::Unknown => print::aside("no such command: /edit TEXT, /delete, /archive, /close, /reopen, /quit"),
            Line::Say(text) => {
                self.count += 1;
                let client_ref = Ref::parse(&format!("{}-{}", self.run, self.count));
                let client_ref = client_ref.map_err(|why| Failure::failed(why.to_string()))?;
                let until = self.later(self.args.timeout);
                self.under = Some(Under { client_ref, text, again: None, until });
                self.send().await;
            }
            Line::Ask(word) => self.asked(Method::POST, &format!("{path}/{word}"), Some(&json!({}))).await?,
            Line::Edit(_) | Line::Delete if self.talk.last().is_none() => print::aside("nothing was said yet"),
            Line::Edit(text) => {
                let path = format!("{path}/messages/{}", self.talk.last().map(|id| id.to_string()).unwrap_or_default());
                self.asked(Method::PATCH, &path, Some(&json!({ "content": text }))).await?;
            }
            Line::Delete => {
                let path = format!("{path}/messages/{}", self.talk.last().map(|id| id.to_string()).unwrap_or_default());
                self.asked(Method::DELETE, &path, None).await?;
            }
        }
        Ok(true)
    }

    /// A refusal is told and ends nothing where a person types. What was accepted a moment ago may not be recorded yet: it
    /// is asked for again.
    async fn asked(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(), Failure> {
        let until = self.later(RECORDED_MS);
        let answer = loop {
            let answer = self.server.ask(method.clone(), path, &[], body).await;
            let code = answer.as_ref().err().and_then(|why| why.problem.as_ref()).map(|problem| problem.code);
            let is_early = matches!(code, Some(Code::NotFound | Code::NotRecordedOrUnknown));
            if !is_early || tokio::time::Instant::now() >= until {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        match answer {
            Ok(_) => Ok(()),
            Err(why) if why.problem.is_some() && std::io::stdin().is_terminal() => {
                print::aside(why.to_string());
                Ok(())
            }
            Err(why) => Err(why),
        }
    }

    async fn send(&mut self) {
        let Some(under) = &self.under else { return };
        let Ok(content) = schemas::json::Json::parse(&Value::String(under.text.clone()).to_string()) else { return };
        let frame = ClientFrame::Send {
            client_ref: under.client_ref.clone(),
            conversation_id: Some(self.conversation),
            to: None,
            content,
            content_type: schemas::ContentType::Text,
            key: None,
        };
        self.phone.say(&frame).await;
    }

    async fn met(&mut self, met: Met, unread: &mut Option<MessageId>) -> Result<(), Failure> {
        match met {
            Met::Welcome { recovered } => {
                self.connected = true;
                if !recovered {
                    print::aside("some messages since then are no longer kept");
                }
                // Its answer may have been lost with the connection.
                self.send().await;
            }
            Met::Items(items) => {
                for item in &items {
                    let is_own = self.under.as_ref().is_some_and(|under| under.text == item.content);
                    if is_own && !self.talk.is_theirs(item) && item.conversation_id == Some(self.conversation) {
                        // It came before the word that it was accepted.
                        self.talk.knows(item.id);
                        continue;
                    }
                    show(self.talk.item(item, false))?;
                    if self.talk.is_theirs(item) {
                        *unread = Some(item.id);
                    }
                }
                if let Some(cursor) = items.iter().rev().find_map(|item| item.cursor.as_ref()) {
                    self.phone.acknowledge(cursor).await;
                }
            }
            Met::Accepted { client_ref, id } => {
                let ours = self.under.take_if(|under| Some(&under.client_ref) == client_ref.as_ref());
                if let (Some(under), Some(id)) = (ours, id) {
                    show(self.talk.accepted(id, under.client_ref, &under.text))?;
                }
            }
            Met::Refused { client_ref, problem } => {
                let later = problem.retry_after_ms.map(|ms| self.later(ms.max(AGAIN_MS / 10)));
                match &mut self.under {
                    // It is held back, not refused: what is full now has room then.
                    Some(under) if under.client_ref == client_ref && later.is_some() => {
                        under.again = later;
                        print::aside(format!("held back: {problem}"));
                    }
                    Some(under) if under.client_ref == client_ref => {
                        self.under = None;
                        let refused = Failure::refused(problem);
                        if !std::io::stdin().is_terminal() {
                            return Err(refused);
                        }
                        print::aside(refused.to_string());
                    }
                    _ => {}
                }
            }
            Met::Status(change) => show(self.talk.status(&change))?,
            Met::Read { conversation, up_to, by } => show(self.talk.read(conversation, up_to, &by))?,
            Met::Typing { conversation, by } => show(self.talk.typing(conversation, &by))?,
            Met::Presence { user, online, last_seen } => {
                if user == self.args.with {
                    show(self.talk.presence(&user, online, last_seen))?;
                }
            }
            Met::Gone { after_ms, why } => {
                self.connected = false;
                print::aside(format!("{why}; coming back in {after_ms} ms"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_message_or_a_command() {
        for (text, is) in [
            ("hello there\n", Line::Say("hello there".to_owned())),
            ("//etc is a folder", Line::Say("/etc is a folder".to_owned())),
            ("", Line::Nothing),
            ("/quit", Line::Quit),
            ("/delete", Line::Delete),
            ("/edit  better ", Line::Edit("better".to_owned())),
            ("/edit", Line::Unknown),
            ("/archive", Line::Ask("archive")),
            ("/nonsense", Line::Unknown),
        ] {
            assert_eq!(line(text), is, "{text}");
        }
    }
}
